"""Says plainly what is wrong with the chosen Python before pip gets a chance to say it badly.

Written so that even a Python too old for the project can run it.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "minivllm needs Python 3.10 or newer; this is %d.%d (%s).\n"
        "Name another one, for example: make PYTHON=python3.12 book"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError as error:
    sys.exit(
        "This Python (%s) cannot make virtual environments: %s.\n"
        "On Debian and Ubuntu: apt-get install python3-venv\n"
        "Or name another one: make PYTHON=python3.12 book" % (sys.executable, error)
    )
