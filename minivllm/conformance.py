"""`python -m minivllm.conformance TRACES`: see `minivllm.runs.conformance`."""

import sys

from minivllm.runs.conformance import main

if __name__ == "__main__":
    sys.exit(main())
