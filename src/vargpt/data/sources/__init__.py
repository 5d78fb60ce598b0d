"""Where samples come from: random access to conversations made of files of several formats."""

from vargpt.data.sources.protocol import BrokenSample, Sample, Source, Task, shuffled

__all__ = ["BrokenSample", "Sample", "Source", "Task", "shuffled"]
