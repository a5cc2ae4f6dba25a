"""Tokenizer and processor of the embedded model: whole words, one token a letter of a sign, one token a coordinate."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from swiftvlm.scenes import COLORS, KINDS, LETTERS, PATCH, PLURALS, SIDE

GAP = "\u2581"  # stands for a space, as in Llama's vocabulary
# They open the vocabulary: an index here is an id. `<image>` and the roles swallow the space before them.
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:")
PLAIN = (
    *("where", "read", "what", "how", "is", "are", "there", "many", "the", "a", "an", "to", "of", "or", "and", "next"),
    *("sign", "thing", "things", "color", "left", "right", "top", "bottom", "above", "below", "small", "large"),
    *("yes", "no"),
)
# Only these words are lowered: capitals are the letters of signs.
STARTS = ("Where", "Read", "What", "How", "Is")
# A comma and a bracket take their space along, so that a coordinate has one form; it is tried before a digit.
PIECES = rf",{GAP}|{GAP}?\[|{GAP}?\d\.\d\d|{GAP}?[a-z]+|{GAP}?[A-Z]|{GAP}?\d|\?|\.|\]"
# Pictures come before the question, whatever order the message has them in.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER:{% else %} ASSISTANT:{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token in order of its id."""
    words = dict.fromkeys([*PLAIN, *COLORS, *KINDS, *PLURALS.values()])
    numbers = [str(n) for n in range(10)]
    coordinates = [f"{n / 100:.2f}" for n in range(101)]
    # Words stand behind a space only; letters both ways: the first on a sign, and the others.
    spaced = [GAP + word for word in (*words, *LETTERS, *numbers, "[")]
    return [*SPECIAL, *spaced, *LETTERS, *coordinates, "," + GAP, "]", "?", "."]


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; words it does not know become `<unk>`."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    spoken = [normalizers.Replace(word, word.lower()) for word in STARTS]
    spaces = [normalizers.Replace(Regex(r"\s+"), GAP)]
    core.normalizer = normalizers.Sequence([*spoken, *spaces])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    core.decoder = decoders.Sequence([decoders.Replace(GAP, " "), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    roles = [AddedToken(role, lstrip=True, normalized=False, special=True) for role in SPECIAL[4:]]
    core.add_special_tokens(roles)
    make: Any = PreTrainedTokenizerFast  # transformers leaves its constructors unannotated
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
    )
    return made


def processor() -> LlavaProcessor:
    """Images to 336 x 336 pixels, text to ids, one placeholder a patch."""
    square = {"height": SIDE, "width": SIDE}
    # 3 is bicubic; a scene has this size already and passes unchanged.
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, resample=3)
    made: LlavaProcessor = processor_of(LlavaProcessor, images)
    return made


def processor_of(make: Any, images: Any) -> Any:
    """A LLaVA processor of some class around an image processor."""
    # The class token is counted and, under `default`, taken off again: 576 placeholders a picture.
    return make(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
