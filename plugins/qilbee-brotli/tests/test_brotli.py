"""The codec keeps the contract of every codec."""

import brotli  # type: ignore[import-untyped]
from qilbee_brotli import BrotliCodec

from qilbee_core import Codec, load_plugins
from qilbee_core.testing import CodecContract

TEA = b"Tea at four, tea at five, tea at six."


class TestBrotli(CodecContract):
    golden = (
        (b";", b""),
        (bytes.fromhex("13240000442747fa79cb2890c3e1dcd7ea0f3a114516d5681f110c8216029f5a7f03"), TEA),
        (bytes.fromhex("132b0100240062b140ca"), bytes(300)),
        # quality 11: a decoder reads what any encoder may write
        (bytes.fromhex("1b2400f81da9539f3486674d15364727cb5cd212c40eaf3f6844145954032b0df288709cfa00"), TEA),
    )
    hostile = (
        (b"", 0),
        (brotli.compress(bytes(64 << 20), quality=5, lgwin=24), 1024),
        (b";;", 0),
    )

    def open_codec(self) -> Codec:
        return BrotliCodec()


def test_it_is_found_by_name() -> None:
    plugins = load_plugins()
    assert plugins.codecs.create("brotli").name == "brotli"
    assert plugins.codecs.distributions["brotli"] == "qilbee-brotli"
