"""python -m funmatch COMMAND: the console command, also where it is not on the PATH."""

from funmatch.cli.main import main

if __name__ == "__main__":
    main()
