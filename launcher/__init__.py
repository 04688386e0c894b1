"""What `mip.py` starts: an environment, a ComfyUI, a server, commands. It uses only Python's standard library.

environment.py  a venv with PyTorch, the host's requirements and our tools
comfyui.py      the ComfyUI to run: a given checkout, or the one inside a wheel
server.py       a ComfyUI server with this pack
commands.py     the commands and their options
package.py      imports the checkout as `mip_adapter`
"""
