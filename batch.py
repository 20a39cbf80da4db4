#!/usr/bin/env python3
"""Run a workflow many times with other inputs, on ComfyUI servers: `python3 batch.py WORKFLOW TABLE`; `--help` says
more, and batching/README.md all."""

import sys

# Plain old syntax in this file, so that an old Python gets this far and can say what is wrong.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("batch.py needs Python 3.10 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

if __name__ == "__main__":
    import _enter_pack

    _enter_pack.enter()
    from coherence.batching.cli import main

    sys.exit(main())
