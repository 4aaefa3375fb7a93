"""python src/cohort.py key=value,value ...: distils several students in one pass of the teacher."""

from funmatch.cli.command import cohort

if __name__ == "__main__":
    cohort()
