"""Write the stacks of all threads to a file of this process when it gets SIGUSR1.

Python runs this module at the start of every process that has its folder on the path.
"""

import faulthandler
import os
import signal

if "TESTS_STACKS" in os.environ:
    try:
        path = os.path.join(os.environ["TESTS_STACKS"], str(os.getpid()))
        faulthandler.register(signal.SIGUSR1, file=open(path, "w"), all_threads=True)  # noqa: SIM115
    except OSError:
        pass  # the tests are over
