"""PyTorch's files are read as data: what a malicious one would run is refused and does not run."""

import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from jaxnn import models
from jaxnn.models.weights.pickled import _CALLS, read_pickled

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "weights"


def archive(path, program, storages=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("archive/data.pkl", program)
        for key, data in (storages or {}).items():
            out.writestr(f"archive/data/{key}", data)
    return path


def tensor_program(size=4, offset=0, shape=(2, 2), strides=(2, 1)):
    """The opcodes of {"w": tensor}, by hand."""
    numbers = lambda ns: b"(" + b"".join(b"K" + bytes([n]) for n in ns) + b"t"  # noqa: E731
    return b"".join(
        [
            b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloat",
            b"Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
            b"K" + bytes([size]) + b"tQK" + bytes([offset]) + numbers(shape) + numbers(strides),
            b"\x89ccollections\nOrderedDict\n)RtRs.",
        ]
    )


DATA = np.arange(4, dtype=np.float32)
DOUBLED = b"q\x00h\x00\x86" * 200  # memo 0 is the top; the top and memo 0 are a tuple, and so on


def test_a_tensor_with_strides_and_offset(tmp_path):
    for program, wanted in (
        (tensor_program(), DATA.reshape(2, 2)),
        (tensor_program(strides=(1, 2)), DATA.reshape(2, 2).T),
        (tensor_program(offset=1, shape=(3,), strides=(1,)), DATA[1:]),
        (tensor_program(shape=(1, 2, 1), strides=(0, 2, 9)), DATA[::2].reshape(1, 2, 1)),
        (tensor_program(shape=(0, 2)), np.zeros((0, 2))),
    ):
        found = read_pickled(archive(tmp_path / "w.pth", program, {"0": DATA.tobytes()}))
        np.testing.assert_array_equal(found["w"].read(), wanted)


def test_the_archives_directory_is_read_once(tmp_path, monkeypatch):
    """It is as long as there are tensors: read for each of them it took seconds for a thousand."""
    opened, real = [], zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: opened.append(args) or real(*args))
    for stored in read_pickled(FIXTURES / "gpt2_pickled" / "pytorch_model.bin").values():
        stored.read()
    assert len(opened) == 1


def evil(call, *args):
    class Evil:
        def __reduce__(self):
            return call, args

    return Evil()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_not_run(protocol, tmp_path):
    target = tmp_path / "touched"
    programs = [
        pickle.dumps(evil(os.system, f"touch {target}"), protocol),
        pickle.dumps({"w": evil(eval, f"open({str(target)!r}, 'w').close()")}, protocol),
        pickle.dumps(OrderedDict(w=evil(os.mkdir, str(target))), protocol),
        pickle.dumps(evil(exec, "import os"), protocol),
    ]
    for program in programs:
        with pytest.raises(ValueError, match="is refused: it"):
            read_pickled(archive(tmp_path / "pytorch_model.bin", program))
    assert not target.exists()
    pickle.loads(programs[1])  # the oracle: unpickled it does run
    assert target.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "it names os.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "it names posix.system"),
        (b"\x80\x02ctorch\nload\n.", "it names torch.load"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", "it names torch._utils._rebuild_tensor,"),
        (b"\x80\x02ccollections\nOrderedDict.fromkeys\n.", "it names collections.OrderedDict.fromkeys"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "it calls"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "opcode NEWOBJ"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "a stored object 'a'"),
        (b"\x80\x02}K\x01K\x02s.", "entry's name is 1 and no text"),
        (b"\x80\x02}X\x01\x00\x00\x00wK\x02s.", "entry 'w' is int and no tensor"),
        (b"\x80\x02K\x01.", "it holds int"),
        (b"\x80\x02(", "damaged|does not end"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "damaged"),
        (tensor_program(size=4, shape=(200, 200), strides=(200, 1)), r"'w' \[200, 200\] reaches element 40000 of 4"),
        (tensor_program(offset=3), "reaches element 7 of 4"),
        (tensor_program(strides=(1,)), "a tensor of 2 axes with 1 strides"),
        (tensor_program(shape=(200, 200), strides=(0, 0)), r"\[200, 200\] with strides \[0, 0\], whose elements share"),
        (tensor_program(shape=(2, 2), strides=(0, 1)), "share memory"),
        (tensor_program(shape=(2, 2), strides=(1, 1)), "share memory"),
        (tensor_program(shape=(1,) * 33, strides=(1,) * 33), "a tensor of 33 axes"),
        (tensor_program(shape=(0, *[255] * 9), strides=(1,) * 10), "a tensor of shape"),
        (tensor_program(size=5), "'w' is of 5 stored float32, and there are 4"),
        # Tuples doubled 200 times, as what each refusal would print, or hash.
        (b"\x80\x02)" + DOUBLED + b"Q.", "a stored object tuple"),
        (b"\x80\x02)" + DOUBLED + b")R.", "it calls tuple"),
        (b"\x80\x02})" + DOUBLED + b"K\x01s.", "name is tuple and no text"),
        (b"\x80\x04)" + DOUBLED + b"h\x00\x93.", "it names what is no text"),
    ],
)
def test_nothing_but_tensors_that_are_there(program, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pickled(archive(tmp_path / "w.pth", program, {"0": DATA.tobytes()}))


def test_what_may_be_called_is_none_of_the_files_choice():
    """Every function that a file can reach is one of this library's own."""
    assert {function.__module__ for function in _CALLS.values()} == {"jaxnn.models.weights.pickled"}


def test_other_forms_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="no zip archive"):
        read_pickled(path)
    with pytest.raises(ValueError, match="is compressed"):
        read_pickled(archive(path, tensor_program(), {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("readme", "")
    with pytest.raises(ValueError, match=r"has no data\.pkl"):
        read_pickled(path)


def test_the_fixture_is_torchs_own():
    program = zipfile.ZipFile(FIXTURES / "gpt2_pickled" / "pytorch_model.bin").read("pytorch_model/data.pkl")
    assert any("_rebuild_tensor_v2" in str(arg) for _, arg, _ in pickletools.genops(program))
    found = read_pickled(FIXTURES / "gpt2_pickled" / "pytorch_model.bin")
    assert found["transformer.wte.weight"].shape == (50, 16)
    assert models.load(FIXTURES / "gpt2_pickled")[0].config.layers == 2


def test_a_damaged_file_is_a_named_error(tmp_path):
    """Whatever byte is another: the tensors, or an error of this library's form."""
    whole = archive(tmp_path / "w.pth", tensor_program(), {"0": DATA.tobytes()}).read_bytes()
    said = []
    for at in range(len(whole)):
        for flip in (0xFF, 0x01):
            (tmp_path / "w.pth").write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                {name: tensor.read() for name, tensor in read_pickled(tmp_path / "w.pth").items()}
            except ValueError as error:
                said.append(str(error))
    assert len(said) > len(whole)
    assert all(text.startswith("models.load: ") for text in said)
