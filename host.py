#!/usr/bin/env python3
"""Get a real ComfyUI with this pack in it: `python3 host.py demo`, `test`, `report` or `serve`; `--help` says more."""

import sys

# Plain old syntax in this file, so that an old Python gets this far and can say what is wrong.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("host.py needs Python 3.10 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

if __name__ == "__main__":
    import _enter_pack

    _enter_pack.enter()
    from coherence.hosting.cli import main

    sys.exit(main())
