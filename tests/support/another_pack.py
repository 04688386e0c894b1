"""A node pack beside ours in the tests' server: one file in custom_nodes. Its node puts patches where ours are."""


class ReplaceCrossAttention:
    """The model's text attention as by itself, as a pack does it that does not ask what was there before."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "replace"
    CATEGORY = "tests"

    def replace(self, model):
        from comfy.ldm.modules.attention import optimized_attention

        def theirs(q, k, v, options):
            return optimized_attention(q, k, v, options["n_heads"])

        model = model.clone()
        for key in list(model.model_options["transformer_options"]["patches_replace"]["attn2"]):
            model.set_model_attn2_replace(theirs, *key)
        return (model,)


NODE_CLASS_MAPPINGS = {"ReplaceCrossAttention": ReplaceCrossAttention}
