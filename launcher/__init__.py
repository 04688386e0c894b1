"""What `mip.py` starts: an environment, a ComfyUI, a server, commands. Python's standard library only.

environment.py  PyTorch, the host's needs and our tools in a venv     comfyui.py   a checkout, or the one of a wheel
server.py       a real ComfyUI with this pack                         commands.py  the commands and their options
package.py      the checkout imported as `mip_adapter`
"""
