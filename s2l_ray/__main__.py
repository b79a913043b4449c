"""`python -m s2l_ray` is the same program as `s2l`."""

from s2l_ray.cli import program

if __name__ == "__main__":
    program()
