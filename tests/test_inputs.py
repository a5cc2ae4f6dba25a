"""Images of every kind, questions, boxes and checkpoints: converted where possible, refused in one line where not."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from swiftvlm.errors import FamilyError
from swiftvlm.inputs.checkpoint import CheckpointError, load_checkpoint
from swiftvlm.inputs.images import ImageError, open_image, pad_to_square, to_rgb
from swiftvlm.inputs.prompts import PromptError, build_prompt, check_question, read_boxes
from tests.checkpoints import byte_tokenizer, save_checkpoint


def saved(tmp_path, image, name="image.png", **options):
    """The path of an image written to disk."""
    path = tmp_path / name
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    """Converted, not refused."""
    name = "image.tif" if mode in ("CMYK", "YCbCr", "I", "F") else "image.png"
    image = Image.new("RGB", (20, 10), (200, 100, 50))
    image = (
        Image.new(mode, (20, 10), 30000 if mode.startswith("I") else 0.5)
        if mode in ("I;16", "I", "F")
        else image.convert(mode)
    )
    opened = open_image(saved(tmp_path, image, name))
    assert (opened.mode, opened.size) == ("RGB", (20, 10))


def test_sixteen_bits_are_scaled_not_clipped():
    """Half of 65535 is half of 255."""
    grey = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert np.asarray(to_rgb(grey))[0, 0].tolist() == [127, 127, 127]


def test_transparency_lies_on_white():
    """A transparent pixel is white, not black."""
    assert to_rgb(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_phones_rotate(tmp_path):
    """EXIF orientation is applied."""
    image = Image.new("RGB", (30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(saved(tmp_path, image, "image.jpg", exif=exif)).size == (10, 30)


def test_standard_input(monkeypatch):
    """ "-" reads the image from stdin."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert open_image("-").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "message"),
    [((1, 1), "1 x 1 pixels; each side needs at least 8"), ((20000, 10), "one side is over 50 times the other")],
)
def test_odd_sizes_are_refused(tmp_path, size, message):
    """Too small to see, too long to crop."""
    with pytest.raises(ImageError, match=message):
        open_image(saved(tmp_path, Image.new("RGB", size)))


def test_a_decompression_bomb_is_refused(tmp_path):
    """A small file of many pixels, before any of them is decoded."""
    path = saved(tmp_path, Image.new("1", (20000, 9500)))
    with pytest.raises(ImageError, match=r"decompression bomb|more than 100,000,000"):
        open_image(path)


def test_the_limit_is_ours(tmp_path, monkeypatch):
    """Pillow warns below it; a picture in between is opened."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(saved(tmp_path, Image.new("RGB", (40, 40)))).size == (40, 40)


def test_damaged_files_are_refused(tmp_path):
    """Truncated, not an image, a folder, missing."""
    path = saved(tmp_path, Image.effect_noise((64, 64), 50), "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    assert open_image(path).size == (64, 64)
    with pytest.raises(ImageError, match="damaged or truncated"):
        open_image(str(tmp_path / "half.jpg"))
    with pytest.raises(ImageError, match="not an image"):
        open_image(str(tmp_path / "text.png"))
    with pytest.raises(ImageError, match="is a folder"):
        open_image(str(tmp_path))
    with pytest.raises(ImageError, match="no such file"):
        open_image(str(tmp_path / "none.png"))


def test_padding_centres_the_picture():
    """A wide picture gets equal bars above and below."""
    square = pad_to_square(Image.new("RGB", (20, 10), "white"), (1, 2, 3))
    assert square.size == (20, 20)
    assert [square.getpixel((0, y)) for y in (4, 5, 14, 15)] == [(1, 2, 3), (255,) * 3, (255,) * 3, (1, 2, 3)]


def test_questions():
    """Empty ones and ones with placeholders are refused; others lose their surrounding space."""
    assert check_question("  why? ") == "why?"
    with pytest.raises(PromptError, match="the question is empty"):
        check_question(" \n")
    with pytest.raises(PromptError, match="already contains '<image>'"):
        check_question("what is <image>?")


class Processor:
    """As much of a processor as prompts need."""

    image_token, chat_template, tokenizer = "<image>", None, byte_tokenizer()


def test_prompts_without_a_template():
    """LLaVA-1.5's plain frame, one placeholder an image, and Vicuna's system sentences on request."""
    assert build_prompt(Processor(), "why?", 2) == "USER: <image>\n<image>\nwhy? ASSISTANT:"
    vicuna = build_prompt(Processor(), "why?", 1, "vicuna")
    assert vicuna.startswith("A chat between a curious user")
    assert vicuna.endswith("USER: <image>\nwhy? ASSISTANT:")


def test_boxes_are_read_out_of_answers():
    """Several boxes, spaces; what is not a box in [0, 1] is left out."""
    text = "Here [0.1, 0.2,0.3 , 0.4] and [0.5, 0.5, 0.4, 0.9] and [1, 2, 3, 4] and [0, 0, 1, 1]."
    assert read_boxes(text) == [(0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 1.0, 1.0)]


def test_a_checkpoint_round_trip(tmp_path):
    """Loaded in the type asked for, with its processor."""
    model, processor = load_checkpoint(str(save_checkpoint(tmp_path, "llava")), "bfloat16", "cpu")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert processor.image_token == "<image>"


def test_what_is_no_checkpoint(tmp_path):
    """A file, an empty folder, a broken config, a text-only model, an absent device: each its own line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, give the checkpoint's folder"):
        load_checkpoint(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a vision-language checkpoint"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="not a vision-language checkpoint"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="device 'cuda:9' is not available"):
        load_checkpoint(str(save_checkpoint(tmp_path / "good", "llava")), device="cuda:9")


def test_cross_attention_checkpoints_are_refused_before_weights_are_read(tmp_path):
    """Llama 3.2 Vision has no visual tokens in its language model: told from the config alone."""
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    text |= {"cross_attention_layers": [1], "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2, "image_size": 28}
    vision |= {"patch_size": 14, "intermediate_size": 32, "intermediate_layers_indices": [0]}
    config = {"model_type": "mllama", "architectures": ["MllamaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": text, "vision_config": vision}))
    with pytest.raises(
        FamilyError,
        match=r"without self-attention \(\[2\]\)\. Cross-attention VLMs such as Llama 3\.2 Vision are not supported",
    ):
        load_checkpoint(str(tmp_path))
