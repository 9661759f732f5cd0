"""`python -m lib.course`: run the notebooks."""

import sys

from lib.course.runner import main

if __name__ == "__main__":
    sys.exit(main())
