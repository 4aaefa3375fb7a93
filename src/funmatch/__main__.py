"""python -m funmatch COMMAND: the console command without its place on the path."""

from funmatch.cli.main import main

if __name__ == "__main__":
    main()
