"""What other libraries raise becomes one line with a remedy."""

import pytest

from amnesia.errors import InputError, SourceError, library_errors_as


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("not a\nmodel"), r"m cannot be loaded \(not a model\): fetch it again"),
        (KeyError("size"), r"m cannot be loaded \(KeyError: 'size'\): fetch it again"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), r"\(12\)\): free memory, or raise the"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "free memory, or raise the limit"),
        (MemoryError(), r"m cannot be loaded \(MemoryError\): free memory, or raise the limit of this process"),
    ],
)
def test_an_error_of_a_library_is_one_line_and_lack_of_memory_its_own_remedy(error, message):
    with (
        pytest.raises(SourceError, match=message) as caught,
        library_errors_as(SourceError, "m cannot be loaded", "fetch it again"),
    ):
        raise error
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_errors_of_this_package_and_interrupts_pass_as_they_are():
    for error in (InputError("cannot allocate memory"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, library_errors_as(SourceError, "m", "mend it"):
            raise error
        assert caught.value is error
