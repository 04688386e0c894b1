"""What several folders need. Nothing here imports other code of this pack.

atomic_io.py    files that appear complete or not at all
bars.py         numbers as bars
batching.py     work in batches that shrink when memory runs out
bundled.py      files that come with the pack
comfy_path.py   ComfyUI on Python's path
console.py      what commands say to the person at the terminal
crops.py        boxes in pixels, objects cut out of pictures
drawing.py      colours, fonts and a canvas for reports
folder_lock.py  a folder in which one process writes at a time
hashing.py      digests of weights, settings and files
pictures.py     picture files from anywhere, opened with care
resumable.py    long runs in resumable parts
rng.py          random numbers from names
tables.py       numbers in Markdown tables
text.py         object texts and quoted words
text_files.py   text files from anywhere, read with care
weak_cache.py   results kept as long as their inputs live
"""
