"""`python -m lib.course`: run the notebooks."""

import sys

from lib.course.command import main

if __name__ == "__main__":
    sys.exit(main())
