"""Reading samples from local shards by offset."""

import os
from collections import OrderedDict

from finetune.data.index import Index
from finetune.data.labels import Labels, parse_labels

OPEN_FILES = 64


class ShardSource:
    """Bytes and labels of the rows of an index. Every process opens the files that it reads for itself."""

    def __init__(self, index: Index, text_as: str) -> None:
        self.index = index
        self._text_as = text_as
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict()}

    def image(self, row: int) -> bytes:
        """The encoded picture. Raises OSError where the shard cannot be read."""
        index = self.index
        return self._read(row, int(index.image_offset[row]), int(index.image_size[row]))

    def labels(self, row: int) -> Labels:
        """Tags and captions. Raises DataFault where they cannot be parsed, OSError where the shard cannot be read."""
        index = self.index
        text = self._read_member(row, int(index.text_offset[row]), int(index.text_size[row]))
        json_bytes = self._read_member(row, int(index.json_offset[row]), int(index.json_size[row]))
        return parse_labels(text, json_bytes, self._text_as)

    def _read_member(self, row: int, offset: int, size: int) -> bytes | None:
        return self._read(row, offset, size) if size else None

    def _read(self, row: int, offset: int, size: int) -> bytes:
        number = int(self.index.shard[row])
        data = os.pread(self._descriptor(number), size, offset)
        if len(data) != size:
            raise OSError(
                f"{self.index.shard_path(number)}: {len(data)} of {size} bytes at {offset} ({self.index.key(row)})"
            )
        return data

    def _descriptor(self, number: int) -> int:
        """An open file of the shard; the least recently used ones are closed. `pread` has no seek position to share."""
        if number not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = os.open(self.index.shard_path(number), os.O_RDONLY)
        self._files.move_to_end(number)
        return self._files[number]
