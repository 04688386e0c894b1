"""Training of an adapter or of its fusion head, by the paper's recipe (arXiv 2409.17920).

config.py             the recipe: every setting of a training, with the paper's defaults
earlier_rules.py      how runs go on that began before a setting existed
run_config.py         a run as a TOML file: model, data, recipe, output
data_folder.py        the layout of a folder of training data, and lists of kept pictures
dataset.py            samples from such a folder
filters.py            which objects of a picture count
crops.py              the crop of a picture, and its objects cut out as references
loader.py             batches of samples, for each process and its workers
objective.py          the loss of one batch over a frozen model
site.py               one cross-attention site with gradients
trainable.py          the adapter as a module with parameters; a new adapter
adapter_optimizer.py  one update of the adapter, and its state for a checkpoint
optimizers.py         AdamW and Muon
trainer.py            the training loop
processes.py          one process, or several under accelerate
checkpoints.py        checkpoints of a run, resumed bit for bit
loss_curve.py         the loss as a table and as a picture
save.py               the trained adapter as a file
comfy_latents.py      latents drawn from the VAE's posterior
comfy_model.py        a model that ComfyUI has loaded, as the frozen model
comfy_session.py      training inside a workflow
comfy_validation.py   sample pictures during training
"""
