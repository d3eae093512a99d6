#!/usr/bin/env python3
"""Exports, loaded by the runtimes that they are for: diffusers and PEFT.

    check_exports.py PROGRAM [FOLDER]

Needs torch, diffusers, peft and safetensors; FOLDER is the golden data's (dit/<variant>), by
default tests/golden. For a text-to-video, an image-to-video and a 1.5 model: the adapter is
exported in every form; diffusers' pipeline loads the diffusers folder, PEFT the peft folder, the
merged folder loads as a model; comfy and kohya files are merged by their own rule (W + alpha /
rank * up down). All predictions must be those of the reference's own load of the adapter to 1e-5,
and the files must keep their strength: r, alpha and scale of every layer as in the source.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

VARIANTS = ["2b", "5b", "5b-i2v", "1.5-5b-i2v"]
BOUND = 1e-5
COMFY = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "attn_out"}
failures = 0


def check(what, good, note=""):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}{': ' if note else ''}{note}")


def export(program, *settings):
    run = subprocess.run([program, "export", *settings], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"export {settings}: {run.returncode}: {run.stderr}")
    paths = run.stdout.split()
    check("stdout names files that are there", paths and all(map(os.path.exists, paths)))


def pipeline(model):
    """A pipeline of the transformer alone: all that loading an adapter looks at."""
    return CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model,
                             scheduler=None)


def load_model(folder, dtype=torch.float32):
    return CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).eval()


def rotary(model, frames, height, width):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    config = model.config
    if not config.use_rotary_positional_embeddings:
        return None
    p, p_t = config.patch_size, config.patch_size_t
    return get_3d_rotary_pos_embed(
        config.attention_head_dim, None, (height // p, width // p), frames // (p_t or 1),
        grid_type="slice", max_size=(config.sample_height // p, config.sample_width // p))


@torch.no_grad()
def predict(model, inputs):
    latents = inputs["latents"]
    if "image_latents" in inputs:
        latents = torch.cat([latents, inputs["image_latents"]], 2)
    ofs = None if model.config.ofs_embed_dim is None else torch.full((1,), 2.0)
    return model(hidden_states=latents, encoder_hidden_states=inputs["text"],
                 timestep=inputs["timesteps"], ofs=ofs, return_dict=False,
                 image_rotary_emb=rotary(model, latents.shape[1], *latents.shape[3:]))[0]


def strengths(model):
    return {(name.removeprefix("base_model.model."), layer.r[key], float(layer.lora_alpha[key]),
             layer.scaling[key])
            for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
            for key in layer.active_adapters}


def merge_by_hand(model, tensors, names):
    """names(module) -> the file's name of the layer; returns how many layers were merged."""
    left, weights = dict(tensors), dict(model.named_parameters())
    for key in [k for k in weights if k.endswith(".weight")]:
        layer = names(key[:-len(".weight")])
        down = left.pop(layer + ".lora_A.weight", left.pop(layer + ".lora_down.weight", None))
        up = left.pop(layer + ".lora_B.weight", left.pop(layer + ".lora_up.weight", None))
        if down is None or up is None:
            continue
        scale = left.pop(layer + ".alpha").item() / down.shape[0]
        weights[key].data += (up @ down) * scale
    return len(left)


def comfy_name(module):
    parts = module.split(".")
    if parts[0] != "transformer_blocks":
        return "diffusion_model." + module
    tail = ".".join(parts[3:]) if parts[2] == "attn1" else ".".join(parts[2:])
    return f"diffusion_model.blocks.{parts[1]}.{COMFY.get(tail, tail)}"


def check_header(file, model_scale):
    with safe_open(file, "pt") as f:
        meta = f.metadata()
        keys = list(f.keys())
    settings = json.loads(meta["lora_adapter_metadata"])
    check("diffusers: header", meta["format"] == "pt" and set(settings) == {
        "transformer.r", "transformer.lora_alpha", "transformer.target_modules",
        "transformer.rank_pattern"}, str(settings["transformer.lora_alpha"]))
    check("diffusers: every key holds 'lora'", all("lora" in k for k in keys))
    check("diffusers: scale", settings["transformer.lora_alpha"] / settings["transformer.r"] ==
          model_scale)


def check_variant(program, golden, variant):
    print(f"-- {variant}")
    model = f"{golden}/dit/{variant}"
    adapter, inputs = f"{model}/lora", load_file(f"{model}/inputs.safetensors")
    base = f"{model}/transformer"
    reference = pipeline(load_model(base))
    reference.load_lora_weights(adapter)
    want, strength = predict(reference.transformer, inputs), strengths(reference.transformer)
    moved = (want - predict(load_model(base), inputs)).abs().max().item()
    check("the adapter matters", moved > 1e-3, f"moves the prediction by {moved:.3g}")

    def close(what, transformer):
        error = (predict(transformer, inputs) - want).abs().max().item()
        check(what, error <= BOUND, f"{error:.3g}")

    with tempfile.TemporaryDirectory() as out:
        for preset in ("diffusers", "peft", "comfy", "kohya", "merged"):
            export(program, f"export.adapter={adapter}", f"export.preset={preset}",
                   f"model.path={model}", f"export.out={out}/{preset}")
        check_header(f"{out}/diffusers/pytorch_lora_weights.safetensors", 0.5)
        loaded = pipeline(load_model(base))
        loaded.load_lora_weights(f"{out}/diffusers")
        close("diffusers: prediction", loaded.transformer)
        check("diffusers: r, alpha, scale", strengths(loaded.transformer) == strength)
        peft = PeftModel.from_pretrained(load_model(base), f"{out}/peft").eval()
        close("peft: prediction", peft.get_base_model())
        check("peft: r, alpha, scale", strengths(peft) == strength)
        close("merged: prediction", load_model(f"{out}/merged"))
        for preset, names in (("comfy", comfy_name),
                              ("kohya", lambda m: "lora_unet__" + m.replace(".", "_"))):
            by_hand = load_model(base)
            left = merge_by_hand(by_hand, load_file(f"{out}/{preset}/{preset}.safetensors"), names)
            check(f"{preset}: every tensor has its place", left == 0, f"{left} left")
            close(f"{preset}: prediction", by_hand)
        probe(program, out, model, adapter, want, inputs)
        export(program, f"export.checkpoint={out}/merged", f"export.out={out}/full",
               "export.dtype=bf16")
        full = load_model(f"{out}/full", torch.bfloat16)
        rounded = load_model(f"{out}/merged", torch.bfloat16)
        check("full model: bf16, rounded once",
              all(torch.equal(a, b) for a, b in zip(full.state_dict().values(),
                                                    rounded.state_dict().values())))


def probe(program, out, model, adapter, want, inputs):
    """The merged model against base and adapter in cogsmith itself."""
    results = []
    shutil.copytree(f"{out}/merged", f"{out}/model/transformer")
    shutil.copytree(f"{model}/scheduler", f"{out}/model/scheduler")
    save_file(inputs, f"{out}/inputs.safetensors")
    for name, more in (("merged", []), ("adapter", [f"lora.start={adapter}"])):
        folder = f"{out}/model" if name == "merged" else model
        target = f"{out}/probe-{name}.safetensors"
        run = subprocess.run([program, "probe", f"model.path={folder}", f"probe.out={target}",
                              f"probe.inputs={out}/inputs.safetensors", *more],
                             capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"probe: {run.stderr}")
        results.append(load_file(target)["prediction"])
    error = (results[0] - results[1]).abs().max().item()
    check("probe: merged = base + adapter", error <= BOUND, f"{error:.3g}")


def check_mixed(program, golden):
    """Another rank and alpha for some layers: what one number in the header cannot say."""
    print("-- mixed ranks and alphas")
    model, torch_seed = f"{golden}/dit/5b", torch.Generator().manual_seed(7)
    base = f"{model}/transformer"
    inputs = load_file(f"{model}/inputs.safetensors")
    shapes = {k: v.shape for k, v in load_file(
        f"{base}/diffusion_pytorch_model.safetensors").items()}
    modules = {"transformer_blocks.0.attn1.to_q": 8, "transformer_blocks.1.attn1.to_q": 4,
               "transformer_blocks.1.ff.net.2": 4, "proj_out": 4}
    tensors, alphas = {}, {"proj_out": 12, "transformer_blocks.1.attn1.to_q": 2}
    for module, rank in modules.items():
        out, k = shapes[module + ".weight"]
        a, b = (torch.randn(s, generator=torch_seed) / 8 for s in ((rank, k), (out, rank)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    with tempfile.TemporaryDirectory() as out:
        os.mkdir(f"{out}/source")
        save_file(tensors, f"{out}/source/adapter_model.safetensors")
        with open(f"{out}/source/adapter_config.json", "w", encoding="utf-8") as f:
            json.dump({"peft_type": "LORA", "r": 4, "lora_alpha": 6,
                       "target_modules": sorted(modules), "alpha_pattern": alphas,
                       "rank_pattern": {k: r for k, r in modules.items() if r != 4}}, f)
        source = PeftModel.from_pretrained(load_model(base), f"{out}/source").eval()
        want, strength = predict(source.get_base_model(), inputs), strengths(source)
        for preset in ("diffusers", "peft", "merged"):
            export(program, f"export.adapter={out}/source", f"export.preset={preset}",
                   f"model.path={model}", f"export.out={out}/{preset}")
        loaded = pipeline(load_model(base))
        loaded.load_lora_weights(f"{out}/diffusers")
        check("diffusers: r, alpha, scale", strengths(loaded.transformer) == strength)
        peft = PeftModel.from_pretrained(load_model(base), f"{out}/peft").eval()
        check("peft: r, alpha, scale", strengths(peft) == strength)
        for name, transformer in (("diffusers", loaded.transformer),
                                  ("peft", peft.get_base_model()),
                                  ("merged", load_model(f"{out}/merged"))):
            error = (predict(transformer, inputs) - want).abs().max().item()
            check(f"{name}: prediction", error <= BOUND, f"{error:.3g}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    program = os.path.abspath(sys.argv[1])
    golden = sys.argv[2] if len(sys.argv) > 2 else "tests/golden"
    for variant in VARIANTS:
        check_variant(program, golden, variant)
    check_mixed(program, golden)
    sys.exit(f"{failures} checks failed" if failures else 0)


if __name__ == "__main__":
    main()
