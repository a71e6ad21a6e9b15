"""What training libraries leave on disk: read, or refused by name with the command that converts it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import CheckpointUnusable
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.models.weight_files import plain_name
from tests.support.loading import error_of, loads_weights_of, same_tensors
from tests.support.tiny_models import save_family, tiny_model, tiny_tokenizer


def make(folder: Path, *files: str) -> Path:
    """A folder with empty files."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def refusal(family: Path, step: int) -> str:
    """What loading a step says, in one line."""
    with pytest.raises(CheckpointUnusable) as caught:
        resolve_family(str(family), family, tokens_per_step=1).load(step, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


FOREIGN = [
    (
        "step-00000010",
        ("lit_model.pth", "model_config.yaml", "hyperparameters.yaml", "tokenizer.json"),
        ("litgpt", "lit_model.pth", "litgpt convert_from_litgpt {folder} OUT"),
    ),
    (
        "global_step10",
        ("layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt"),
        ("GPT-NeoX", "layer_00-model_00-model_states.pt", "convert_neox_to_hf.py --input_dir {folder}"),
    ),
    (
        "global_step10",
        ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "../zero_to_fp32.py", "../latest"),
        ("DeepSpeed", "mp_rank_00_model_states.pt", "zero_to_fp32.py {parent} OUT -t global_step10"),
    ),
    (
        "checkpoint-10",
        ("global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py", "latest", "trainer_state.json"),
        ("DeepSpeed", "global_step10", "{folder}/zero_to_fp32.py {folder} {folder} -t global_step10"),
    ),
    (
        "checkpoint-10",
        ("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "trainer_state.json", "config.json"),
        ("FSDP", "pytorch_model_fsdp_0", "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}"),
    ),
    (
        "step-10",
        (".metadata", "__0_0.distcp"),
        ("torch.distributed.checkpoint", "__0_0.distcp", "dcp_to_torch {folder}", "to_hf"),
    ),
    (
        "step10",
        (".metadata.json", "model_and_optim/__0_0.distcp", "model_and_optim/.metadata", "train/rank0.pt"),
        ("OLMo-core", "model_and_optim", "convert_checkpoint_to_hf.py -i {folder} -o {folder}-hf"),
    ),
    (
        "iter_0000010",
        (".metadata", "metadata.json", "__0_0.distcp", "common.pt", "../latest_checkpointed_iteration.txt"),
        ("Megatron", "__0_0.distcp", "Megatron Bridge"),
    ),
    ("iter_0000010", ("mp_rank_00/model_optim_rng.pt",), ("Megatron", "mp_rank_00", "Megatron Bridge")),
    ("step10", ("epoch=1-step=10.ckpt",), ("Lightning", "epoch=1-step=10.ckpt", "config.json")),
]


@pytest.mark.parametrize(("name", "files", "told"), FOREIGN, ids=[f"{told[0]}-{name}" for name, _, told in FOREIGN])
def test_a_library_and_its_converter_are_named(
    name: str, files: tuple[str, ...], told: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make(tmp_path / "run" / name, *files)
    message = refusal(tmp_path / "run", 10)
    for part in told:
        assert part.format(folder=folder, parent=folder.parent) in message
    # The files may be intact, and the training took weeks.
    assert "delete" not in message
    assert "train it again" not in message


def test_a_config_of_the_tokenizers_model_does_not_make_litgpts_folder_a_checkpoint(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "run", {10: 1}) / "step10"
    (folder / "model.safetensors").unlink()
    make(folder, "lit_model.pth")
    assert "is litgpt's (it holds lit_model.pth)" in refusal(tmp_path / "run", 10)


def test_olmo_cores_own_config_is_not_taken_for_a_models(tmp_path: Path) -> None:
    folder = make(tmp_path / "run" / "step10", "model_and_optim/__0_0.distcp")
    (folder / "config.json").write_text('{"model": {"d_model": 64}}')
    assert "is OLMo-core's" in refusal(tmp_path / "run", 10)
    save_family(tmp_path / "converted", {10: 1})
    shutil.move(tmp_path / "converted" / "step10", tmp_path / "run" / "step10-hf")
    family = resolve_family(str(tmp_path / "run"), tmp_path, tokens_per_step=1)
    assert family.steps == (10,)
    assert loads_weights_of(family, 10, 1)
    assert family.load(10, device="cpu").provenance["revision"] == "step10-hf"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("10/config.yaml", "10/model_config.json", "10/model/dense.safetensors", "latest.txt"), "is nanotron's"),
        (("epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt"), "is Lightning's (it holds epoch=1-step=10.ckpt)"),
        (("model_000500.pt",), "is nanochat's"),
    ],
)
def test_a_family_without_steps_of_ours_names_the_library(files: tuple[str, ...], told: str, tmp_path: Path) -> None:
    make(tmp_path / "run", *files)
    assert told in error_of(str(tmp_path / "run"), tmp_path)


@pytest.mark.parametrize(
    "names", [("checkpoint_0", "checkpoint_1"), ("checkpoint_3", "checkpoint_4"), ("checkpoint_7",)]
)
def test_accelerates_count_of_saves_is_no_step(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        make(tmp_path / "run" / name, "model.safetensors", "optimizer.bin", "random_states_0.pkl")
    message = error_of(str(tmp_path / "run"), tmp_path)
    assert "accelerate numbers its folders by the save" in message
    assert r"revisions='checkpoint_(?P<step>\d+)'" in message
    family = resolve_family(str(tmp_path / "run"), tmp_path, 1, revisions=r"checkpoint_(?P<step>\d+)")
    assert len(family.steps) == len(names)


@pytest.mark.parametrize("tied", [False, True])
def test_accelerates_folder_is_read_once_the_config_is_there(tied: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=20, max_position_embeddings=16, tie_word_embeddings=tied, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    folder = tmp_path / "run" / "step10"
    make(folder, "optimizer.bin", "random_states_0.pkl", "scheduler.bin")
    tensors = dict(model.state_dict())
    if tied:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(folder)
    message = refusal(tmp_path / "run", 10)
    assert f"{folder}/config.json is missing (the folder holds model.safetensors, optimizer.bin, " in message
    assert "copy the config.json of the trained model there, which is all it takes" in message
    config.save_pretrained(folder)
    checkpoint = resolve_family(str(tmp_path / "run"), tmp_path, tokens_per_step=1).load(10, device="cpu")
    assert same_tensors(checkpoint.weights, read_weights(model))


@pytest.mark.parametrize(
    "name",
    [
        "_orig_mod.module.gpt_neox.embed_in.weight",
        "module._orig_mod.gpt_neox.embed_in.weight",
        "_fsdp_wrapped_module.gpt_neox._fsdp_wrapped_module.embed_in._orig_mod.weight",
        "gpt_neox.embed_in._checkpoint_wrapped_module.weight",
        "module.module.gpt_neox.embed_in.weight",
    ],
)
def test_wrappers_leave_no_trace_in_names(name: str) -> None:
    assert plain_name(name) == "gpt_neox.embed_in.weight"


@pytest.mark.parametrize("ending", ["model.safetensors", "pytorch_model.bin", "epoch=0-step=5.ckpt"])
def test_names_with_wrappers_and_prefixes_are_read(ending: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {}
    for name, tensor in tensors.items():
        inner = name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.")
        inner = inner.replace("attention.", "_fsdp_wrapped_module.attention._orig_mod.")
        # Lightning's module holds the model as `model`.
        renamed[f"_orig_mod.module.model.{inner}"] = tensor
    if ending == "model.safetensors":
        save_file(renamed, folder / ending, metadata={"format": "pt"})
    else:
        content = {"state_dict": renamed, "global_step": 5, "epoch": 0} if ending.endswith(".ckpt") else renamed
        torch.save(content, folder / ending)
    family = resolve_family(str(tmp_path / "mine"), tmp_path)
    assert loads_weights_of(family, 5, 1)
    bridge = family.load(5, device="cpu").bridge
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.allclose(bridge(tokens), tiny_model(1)(tokens).logits, atol=1e-5)


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    weights = save_family(tmp_path / "mine", {5: 1}) / "step5" / "model.safetensors"
    tensors = load_file(weights)
    twin = {"module.gpt_neox.embed_in.weight": tensors["gpt_neox.embed_in.weight"] + 1}
    save_file(tensors | twin, weights, metadata={"format": "pt"})
    assert "holds gpt_neox.embed_in.weight twice" in refusal(tmp_path / "mine", 5)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


class Model:
    """Something that only this Python can unpickle."""


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"),
        (b"\n<!DOCTYPE html><html>Please log in</html>", "is a web page, not the file itself; fetch that again"),
        (b"", "is empty; copy or fetch it again"),
        (b"neither of these, only noise" * 9, None),
    ],
)
def test_a_file_that_is_no_weights_says_what_it_is(name: str, content: bytes, told: str | None, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1, 6: 2}) / "step5"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    message = refusal(tmp_path / "mine", 5)
    assert message.startswith(f"{folder / name}: ")
    assert told is None or message.endswith(told)
    family = resolve_family(str(tmp_path / "mine"), tmp_path)
    family.prefetch(5)
    with pytest.raises(CheckpointUnusable) as caught:
        family.load(5, device="cpu")
    assert str(caught.value) == message
    assert loads_weights_of(family, 6, 2)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_pointer_in_place_of_a_small_file_is_told_too(name: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    (folder / name).write_bytes(POINTER)
    assert refusal(tmp_path / "mine", 5).startswith(f"{folder / name}: is a Git LFS pointer")


def test_a_pickled_module_is_never_run(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model(1), folder / "pytorch_model.bin")
    message = refusal(tmp_path / "mine", 5)
    assert "pytorch_model.bin: holds other Python objects than tensors" in message
    torch.save([torch.ones(1)], folder / "pytorch_model.bin")
    assert "pytorch_model.bin: holds no tensors by name" in refusal(tmp_path / "mine", 5)


def shard(folder: Path, *, index: bool) -> None:
    """Split a checkpoint's weights into two files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    if index:
        content = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("prefetch", [False, True])
def test_shards_are_read_with_and_without_an_index_and_missing_ones_are_named(
    index: bool, prefetch: bool, tmp_path: Path
) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    shard(folder, index=index)
    family = resolve_family(str(tmp_path / "mine"), tmp_path)
    if prefetch:
        family.prefetch(5)
    assert loads_weights_of(family, 5, 1)
    (folder / "model-00002-of-00002.safetensors").unlink()
    if prefetch:
        family.prefetch(5)
    with pytest.raises(CheckpointUnusable) as caught:
        family.load(5, device="cpu")
    told = "model-00002-of-00002.safetensors is missing (1 of 2 shards); copy or fetch that file again"
    assert str(caught.value) == f"{folder}: {told}"


def test_a_vocabulary_of_another_size_than_the_configs_names_tensor_and_shapes(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    tensors = load_file(folder / "model.safetensors")
    rows, width = tensors["gpt_neox.embed_in.weight"].shape
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        tensors[name] = torch.cat((tensors[name], torch.zeros(8, width)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(tmp_path / "mine", 5)
    assert f"has the shape [{rows + 8}, {width}], but config.json asks for [{rows}, {width}]" in message
    assert message.endswith(f"(vocab_size={rows}); vocab_size={rows + 8} in it is right")
    # As it says: then the added rows are padding beyond the tokenizer, and change nothing.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 8}))
    weights = resolve_family(str(tmp_path / "mine"), tmp_path).load(5, device="cpu").weights
    assert weights.embed.shape == (rows + 8, width)
    torch.testing.assert_close(weights.embed[:rows], read_weights(tiny_model(1)).embed)


def test_a_config_of_another_model_names_a_tensor(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    message = refusal(tmp_path / "mine", 5)
    assert "mlp.dense_" in message
    assert message.endswith("; it is another model's")


def test_the_trainers_count_of_tokens_is_used(tmp_path: Path) -> None:
    family = save_family(tmp_path / "mine", {5: 1, 10: 2})
    (family / "family.json").unlink()
    for step, seen in ((5, 4000), (10, 9000)):
        state = {"global_step": step, "num_input_tokens_seen": seen, "train_batch_size": 8}
        (family / f"step{step}" / "trainer_state.json").write_text(json.dumps(state))
    found = resolve_family(str(family), tmp_path)
    assert [found.tokens[step] for step in found.steps] == [4000, 9000]
    # What the family says comes first.
    (family / "family.json").write_text('{"tokens_per_step": 7}')
    assert resolve_family(str(family), tmp_path).tokens[10] == 70


def test_a_batch_size_alone_names_the_keys_that_are_missing(tmp_path: Path) -> None:
    family = save_family(tmp_path / "mine", {5: 1})
    (family / "step5" / "trainer_state.json").write_text('{"num_input_tokens_seen": 0, "train_batch_size": 8}')
    (family / "family.json").write_text('{"sequence_length": 128, "prepend_bos": true}')
    message = error_of(str(family), tmp_path)
    assert message.startswith(f"{family}/family.json: world_size is missing: ")
    assert "batches of 8 in each process, but not world_size, gradient_accumulation_steps" in message
    about = {"sequence_length": 128, "world_size": 4, "gradient_accumulation_steps": 2}
    (family / "family.json").write_text(json.dumps(about))
    assert resolve_family(str(family), tmp_path).tokens[5] == 5 * 8 * 4 * 2 * 128


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1, 6: 2}) / "step5"
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.mlp.dense_4h_to_h.weight"][1, 2] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(tmp_path / "mine", 5)
    assert message.startswith(f"{folder}: gpt_neox.layers.0.mlp.dense_4h_to_h.weight holds NaN or infinity in float32")
    assert message.endswith("leave the step out")


def test_weights_beyond_float16_name_the_way_out(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "mine", {5: 1}) / "step5"
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.final_layer_norm.bias"][0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    family = resolve_family(str(tmp_path / "mine"), tmp_path)
    with pytest.raises(
        CheckpointUnusable, match=r"final_layer_norm.bias holds NaN or infinity in float16; pass dtype=float32"
    ):
        family.load(5, "float16", "cpu")
    assert family.load(5, "float32", "cpu").weights.final_norm.bias[0] == 1e5
