#!/usr/bin/env python3
"""The command line of MIP-Adapter: `python mip.py demo`, `test`, `serve`, `bench`, `convert`, …

It needs only Python 3.11 and its standard library. Everything else (PyTorch, a ComfyUI, the developers' tools) is
installed on first use into an environment outside the checkout.

    MIP_ADAPTER_HOME     the folder of environments and the host (default: in the user's cache folder)
    MIP_ADAPTER_PYTHON   an interpreter to use in place of the environment
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
