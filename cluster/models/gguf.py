"""Converts GGUF files to a folder with a configuration, a tokenizer and bfloat16 safetensors files."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from cluster.models.config_values import check_values
from cluster.models.gguf_header import GgufHeader, find_parts, read_header
from cluster.models.gguf_rope import FREQUENCIES, check_rope_scaling, set_llama3_scaling
from cluster.models.gguf_tokenizer import build_tokenizer, check_tokenizer
from cluster.models.model_config import check_causal_lm, errors_of_libraries
from storage.errors import UserError

CONVERSION = 2
"""Version of the conversion. A converted model of another version is another model."""

_NAME = "model.gguf"
_OUTPUT = "output.weight"


def check_gguf(file: Path) -> GgufHeader:
    """Header of a GGUF file. Raises UserError if it shows that the file cannot be converted."""
    header = read_header(find_parts(file))
    config = read_gguf_config(header.files[0])
    check_causal_lm(str(file), config.to_dict())
    check_tokenizer(header)
    check_rope_scaling(header)
    _check_count(_build_without_memory(config, header), header)
    return header


@cache
def read_gguf_config(file: Path) -> Any:
    """Configuration of a GGUF file. Raises UserError if transformers cannot read it."""
    # Cached because it is slow to read and shared by all revisions of a model.
    from transformers import AutoConfig

    read_header(find_parts(file))
    with errors_of_libraries(f"{file}: cannot be converted"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    check_values(str(file), config.to_dict())
    return config


def convert_gguf(file: Path, target: Path) -> None:
    """Convert the model that a file belongs to.

    Raises UserError unless each weight of the model is in its files, and each of theirs in the model.
    """
    header = check_gguf(file)
    tokenizer = build_tokenizer(header)
    # A folder of its own, because transformers also reads other files that it finds beside the model.
    with tempfile.TemporaryDirectory(dir=target) as name:
        folder = Path(name)
        _place_alone(header, folder / _NAME)
        model = _load_model(folder, header)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _place_alone(header: GgufHeader, target: Path) -> None:
    """Link a model's file, or merge its files."""
    if len(header.files) == 1:
        target.symlink_to(header.files[0].resolve())
        return
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(file) for file in header.files]
    writer = GGUFWriter(target, header.architecture)
    for field in readers[0].fields.values():
        if field.name.startswith(("GGUF.", "split.", "general.architecture", "general.alignment")):
            continue
        kind, element_kind = field.types[0], field.types[-1]
        is_list = kind == GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), kind, element_kind if is_list else None)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _load_model(folder: Path, header: GgufHeader) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from cluster.models.partial_model import missing_names

    file = header.files[0]
    with errors_of_libraries(f"{file}: is not a GGUF file of a causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=_NAME, dtype=torch.bfloat16, output_loading_info=True
        )
    model, report = loaded
    if missing := missing_names(report):
        raise UserError(
            f"{file}: {len(missing)} weights of {type(model).__name__} are missing or have the wrong "
            f"shape; first: {missing[0]}"
        )
    _check_count(model, header)
    if FREQUENCIES in header.tensors:
        set_llama3_scaling(model.config, header, _read_tensor(folder / _NAME, FREQUENCIES))
    # The weights are dequantized, so save no trace of quantization.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _build_without_memory(config: Any, header: GgufHeader) -> Any:
    """The model of a configuration on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    # The first part of a model may lack its output layer.
    config.tie_word_embeddings &= _OUTPUT not in header.tensors
    problem = f"{header.files[0]}: cannot be built from its metadata"
    with errors_of_libraries(problem), torch.device("meta"), warnings.catch_warnings():
        # about tensors without elements; the number of weights is checked
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config)


def _check_count(model: Any, header: GgufHeader) -> None:
    """Raise UserError unless a file has as many weights as the model; tied ones count once."""
    saved = model.state_dict()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
    expected = sum(tensor.numel() for tensor in (*model.parameters(), *buffers))
    n_values = header.n_values
    if FREQUENCIES in header.tensors:
        n_values -= math.prod(header.tensors[FREQUENCIES].shape)
    if n_values != expected:
        advice = "download it again" if n_values < expected else "use the model's safetensors files"
        raise UserError(
            f"{header.files[0]}: has {n_values:,} weights instead of the {expected:,} of "
            f"{type(model).__name__}; {advice}"
        )


def _read_tensor(file: Path, name: str) -> Any:
    from gguf import GGUFReader, dequantize

    (tensor,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == name)
    return dequantize(tensor.data, tensor.tensor_type)
