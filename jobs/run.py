"""`python -m jobs.run RECIPE`: the target of `ray job submit`; the same as `semiprune run RECIPE`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
