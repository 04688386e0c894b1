#!/usr/bin/env python3
"""The one command-line door of MIP-Adapter: `python mip.py demo`, `test`, `serve`, `bench`, `convert`, …

It needs nothing but Python 3.11 and its standard library. Everything else (PyTorch, a ComfyUI, the
developers' tools) goes into an environment of its own outside the checkout, on first use.

    MIP_ADAPTER_HOME     where environments and the host are kept (default: the user's cache folder)
    MIP_ADAPTER_PYTHON   an interpreter to use in place of an environment of our own
    COMFYUI_PATH         a ComfyUI checkout to use in place of the one from the package registry
"""

import os
import sys

if sys.version_info < (3, 11):
    raise SystemExit("mip.py needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ".")

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from launcher.commands import main

    sys.exit(main(sys.argv[1:]))
