"""Our codecs keep the contract, and the contract's tests can see it broken."""

import subprocess
import sys
import zlib

import pytest

from qilbee_core import Codec, CorruptRecordError, load_plugins
from qilbee_core.codecs.dictionaries import dictionary
from qilbee_core.codecs.lz4 import Lz4Codec
from qilbee_core.codecs.none import NoneCodec
from qilbee_core.codecs.snappy import SnappyCodec
from qilbee_core.codecs.zstd import ZstdCodec
from qilbee_core.testing import CodecContract

TEA = b"Tea at four, tea at five, tea at six."
CHAT = (
    b"Could you tell me what the weather will be like on Saturday? Mostly dry, with some sun before noon; take a coat "
    b"for the evening, since it gets cold near the lake. Thank you, I will. Have a good trip, and say hello to "
    b"everybody from me. Quick jumps over lazy dogs vex bad wizards, 0123456789."
) * 3


class TestNone(CodecContract):
    golden = ((b"", b""), (TEA, TEA))

    def open_codec(self) -> Codec:
        return NoneCodec()


class TestLz4(CodecContract):
    golden = (
        (b"\x00", b""),
        (b"\x10a", b"a"),
        (b"\xe3Tea at four, t\r\x004ive\r\x00P six.", TEA),
        (b"\x1f\x00\x01\x00\xff\x14P\x00\x00\x00\x00\x00", bytes(300)),
        # high compression, level 12: a decoder reads what any encoder may write
        (
            bytes.fromhex(
                "f164436f756c6420796f752074656c6c206d6520776861742074686520776561746865722077696c6c206265206c696b"
                "65206f6e2053617475726461793f204d6f73746c79206472792c207769746820736f6d652073756e206265666f726520"
                "6e6f6f6e3b2074616b65206120636f617420666f725d00f2106576656e696e672c2073696e6365206974206765747320"
                "636f6c64206e65612500b06c616b652e205468616e6ba300312c20498d00502e204861765200f00c676f6f6420747269"
                "702c20616e64207361792068656c6c6f20746f6100ff387279626f64792066726f6d206d652e20517569636b206a756d"
                "7073206f766572206c617a7920646f677320766578206261642077697a617264732c20303132333435363738392e2301"
                "ffff3050363738392e"
            ),
            CHAT,
        ),
    )
    hostile = (
        (b"", 0),  # not even the end of a block
        (b"\x1fa\x01\x00" + b"\xff" * 1_000_000, 1024),  # one letter, 255 million times
        (b"\x1fa\x02\x00\x00\x50aaaaa", 20),  # refers to before its beginning
    )

    def open_codec(self) -> Codec:
        return Lz4Codec()


class TestSnappy(CodecContract):
    golden = (
        (b"\x00", b""),
        (b"\x01\x00a", b"a"),
        (b"%4Tea at four, t\r\r<ive, tea at six.", TEA),
        (bytes.fromhex("ac020000fe0100fe0100fe0100fe0100aa0100"), bytes(300)),
        (
            bytes.fromhex(
                "e906f42a01436f756c6420796f752074656c6c206d6520776861742074686520776561746865722077696c6c20626520"
                "6c696b65206f6e2053617475726461793f204d6f73746c79206472792c207769746820736f6d652073756e206265666f"
                "7265206e6f6f6e3b2074616b65206120636f617420666f7220746865206576656e696e672c2073696e63652069742067"
                "65747320636f6c64206e65617220746865206c616b652e205468616e6b20796f752c20492077696c6c2e204861766520"
                "6120676f6f6420747269702c20616e64207361792068656c6c6f20746f206576657279626f64792066726f6d206d652e"
                "20517569636b206a756d7073206f766572206c617a7920646f677320766578206261642077697a617264732c20303132"
                "333435363738392e436f756c6420796ffe2301fe2301fe2301fe2301fe2301fe2301fe2301fe2301f62301"
            ),
            CHAT,
        ),
    )
    hostile = (
        (b"", 0),
        (b"\xff\xff\xff\xff\x0f\x00a", 1024),  # declares 4 GiB
        (b"\x80\x08\x00a" + b"\xfe\x01\x00" * 100_000, 1024),  # declares 1024, holds 6 MB
        (b"\x85\x00\x10hello", 5),  # a length of two bytes where one would do: nothing writes that
        (b"\x05\x0d\x01", 5),  # refers to before its beginning
    )

    def open_codec(self) -> Codec:
        return SnappyCodec()


# 64 MiB of zeros: 512 blocks of one byte 128 Ki times each, behind a header that is ours to choose.
_MANY_ZEROS = b"\x02\x00\x10\x00" * 511 + b"\x03\x00\x10\x00"


class TestZstd(CodecContract):
    golden = (
        (b"", b""),
        (b" \x01\t\x00\x00a", b"a"),
        (bytes.fromhex("2025ed0000a854656120617420666f75722c20746976657369782e0200a00c904d25"), TEA),
        (bytes.fromhex("602c004d0000100000010027" + "2ac002"), bytes(300)),
        # level 19
        (
            bytes.fromhex(
                "606902e506003651321e506f330634dd4de490b5192ef4dab1a801000e801e2410dcb93aaaaa7a08280028002800ece9"
                "64dcc78bb9189ce48afc768d9a5b9f9d6bd55021b9b45a21b95c50b54a3ba7f269e7cc4dcb0847a995655b27afc59bca"
                "6b4f29854b59ae9dbcd668c9156ff7ad7029fafca6b84a1b8764ab6e260ccf844ae92b5fe7147aae387bebe6d2a09ced"
                "565e2bb51a3b8e9b69e7d15b906447a3e596be99db494e02713014080341007013195c9956cdd63346a96365d933b3dc"
                "50a93d5ea4c9723469136447a5a5859427db0400ef1093ad08625a1829e6196c4314"
            ),
            CHAT,
        ),
    )
    hostile = (
        (b"\x60\x00\x03" + _MANY_ZEROS, 1024),  # declares 1024, holds 64 MiB
        (b"\x40\x58\x00\x03" + _MANY_ZEROS, 1024),  # the same behind a window of 2 MiB
        (b"\x00\x58" + _MANY_ZEROS, 1024),  # declares nothing
        (b"\x00\x58" + _MANY_ZEROS, 64 << 20),  # not even where the length is right
        (b"\x40\xff\x00\x03\x03\x20\x00\x00", 1024),  # a window of 3.75 TiB
        (b"\xe0" + b"\xff" * 8 + _MANY_ZEROS, 1024),  # declares 2**64 - 1
        (b" \x00\x01\x00\x00", 0),  # an empty frame: zstandard would look no further than its header
        (b" \x00\x01\x00\x00 and more", 0),
        (b"", 1),
    )

    def open_codec(self) -> Codec:
        return ZstdCodec()


class TestZstdWithItsDictionary(CodecContract):
    golden = (
        (b"", b""),
        (b" \x01\t\x00\x00a", b"a"),
        (bytes.fromhex("2025fd00005301042b2ee6065507fd5550e7b7986bf697050" + "3fc50b0f915ce78f0fa2201"), TEA),
        (bytes.fromhex("602c00450000080001" + "00282a1002"), bytes(300)),
        (
            bytes.fromhex("2036bd0000c34002ab9cd7f4aa3a138873023cff1201a0adb0ef0204"),
            b"I'm really looking forward to it! See you on Saturday.",
        ),
    )
    hostile = TestZstd.hostile

    def open_codec(self) -> Codec:
        return ZstdCodec(dictionary("zstd", 1))


@pytest.mark.parametrize("name", ["none", "lz4", "snappy", "zstd"])
def test_the_registry_gives_each_codec_by_its_name(name: str) -> None:
    assert load_plugins().codecs.create(name).name == name


def test_a_zstd_frame_is_the_standard_one_without_its_magic_number() -> None:
    zstandard = pytest.importorskip("zstandard")
    assert zstandard.ZstdDecompressor().decompress(b"\x28\xb5\x2f\xfd" + ZstdCodec().encode(CHAT)) == CHAT


def test_a_zstd_dictionary_makes_short_values_shorter_and_is_needed_to_read_them() -> None:
    primed = ZstdCodec().with_dictionary(CHAT)
    encoded = primed.encode(CHAT[40:120])
    assert len(encoded) < 20
    assert primed.decode(encoded, 80) == CHAT[40:120]
    with pytest.raises(CorruptRecordError):
        ZstdCodec().decode(encoded, 80)


# Negative controls: a kit that cannot fail promises nothing.


class Careless:
    """zlib, as written in a hurry."""

    name = "careless"

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes, size: int) -> bytes:
        try:
            decoded = zlib.decompress(data)
        except zlib.error as error:
            raise CorruptRecordError(str(error)) from error
        if len(decoded) != size:
            raise CorruptRecordError(f"{len(decoded)} bytes, not {size}")
        return decoded


class Trusting(Careless):
    def decode(self, data: bytes, size: int) -> bytes:
        return zlib.decompress(data)


def test_the_kit_sees_a_bomb_go_off() -> None:
    class Kit(CodecContract):
        def open_codec(self) -> Codec:
            return Careless()

    Kit().test_one_instance_decodes_what_another_encoded()
    with pytest.raises(AssertionError):
        Kit().test_a_bomb_is_refused_before_it_goes_off()


def test_the_kit_sees_a_size_that_is_not_checked() -> None:
    class Kit(CodecContract):
        def open_codec(self) -> Codec:
            return Trusting()

    with pytest.raises(pytest.fail.Exception):
        Kit().test_another_size_is_refused(TEA)
    with pytest.raises(zlib.error):
        Kit().test_bytes_cut_short_anywhere_are_refused(TEA)


SHARED_COMPRESSOR = """
from types import SimpleNamespace
from zstandard import ZstdCompressor, ZstdDecompressor
from qilbee_core.codecs.zstd import ZstdCodec
from qilbee_core.testing import CodecContract

class SharedZstd(ZstdCodec):
    def __init__(self):
        self._coders = SimpleNamespace(
            compress=ZstdCompressor(level=3).compress, decompress=ZstdDecompressor().decompress
        )

class Kit(CodecContract):
    def open_codec(self):
        return SharedZstd()

Kit().test_one_instance_decodes_what_another_encoded()
print("begins", flush=True)
for _ in range(20):
    Kit().test_eight_threads_share_one_codec()
"""


def test_the_kit_sees_a_zstd_compressor_shared_by_threads() -> None:
    """In a process of its own: wrong bytes are the mildest of what happens."""
    done = subprocess.run([sys.executable, "-c", SHARED_COMPRESSOR], capture_output=True, text=True, check=False)
    assert done.stdout == "begins\n"
    assert done.returncode != 0
