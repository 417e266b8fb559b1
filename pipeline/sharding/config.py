"""How a shard dataset is made."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.captions.languages import ENGLISH, Language, language_rules, language_tag
from pipeline.images.decode import Resize, ShapeLimits
from shards.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a split is written.

    Attributes:
        resize: The size of the stored images.
        shape: Images outside these limits are rejected.
        quality: Their JPEG quality, 1 to 100.
        language: The captions' language, as :func:`pipeline.captions.languages.language_rules` takes it.
        shard_size: Images per shard. Rejected images count too.
        limit: Write the first ``limit`` images of a split only.
        max_rejects: Stop as soon as more than this fraction of the images is rejected.
        check_sources: Compare the source images with existing shards by their bytes, not by name and size.
        retry_rejected: Write shards with rejected images again.

    Raises:
        InputError: A value out of range, or no package that splits this language; names the setting.
    """

    resize: Resize = field(default_factory=Resize)
    shape: ShapeLimits = field(default_factory=ShapeLimits)
    quality: int = 95
    language: str = ENGLISH
    shard_size: int = 1000
    limit: int | None = None
    max_rejects: float = 1.0
    check_sources: bool = False
    retry_rejected: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise SettingsError(f"`quality` {self.quality}: must be between 1 and 100.")
        if self.shard_size < 1:
            raise SettingsError(f"`shard_size` {self.shard_size}: must be at least 1.")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"`limit` {self.limit}: must be at least 1.")
        if not 0 <= self.max_rejects <= 1:
            raise SettingsError(f"`max_rejects` {self.max_rejects}: must be a fraction between 0 and 1.")
        self.rules.check_installed()

    @property
    def rules(self) -> Language:
        """How captions are split."""
        return language_rules(self.language)

    def content(self) -> dict[str, Any]:
        """What decides which images are stored and the bytes of their records, as ``dataset.json`` has it: the same for all splits."""
        return {
            "resize": asdict(self.resize),
            "shape": asdict(self.shape),
            "jpeg_quality": self.quality,
            "language": language_tag(self.language),
            "tokenizer": self.rules.rule,
            "key": "%09d of the position in the plan",
        }
