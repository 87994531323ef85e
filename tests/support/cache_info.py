"""Metadata of a cache that is planned without a tower."""

from clipglot.cache.format import CacheInfo, EncoderInfo, SourceInfo

INFO = CacheInfo(
    state="planning",
    encoder=EncoderInfo(
        model="m",
        pretrained=None,
        weights_sha256="0",
        preprocess={"size": 8},
        dim=4,
        precision="fp32",
        quick_gelu=False,
    ),
    source=SourceInfo(path="m.jsonl", sha256="1", image_root="/", image_field="image", text_fields=["text"]),
    batch_size=2,
)
