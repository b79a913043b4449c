"""`python -m s2l_ray` is the same program as `s2l`."""

import sys

from s2l_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
