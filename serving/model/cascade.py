"""What a manifest says of a cascade: two models, and the rule by which the second one predicts.

    student predicts; if the probability of its digit is at least `threshold`, this is the prediction
    teacher predicts the other images: these are escalated

Not `confidence`: that is low for an image without a digit as well, of which the teacher knows no more, and takes about
twice as many escalations for the same guarantee. A cascade has no graph of its own. Its guarantee is a statement on two
files, so both are named by their hashes. `export.cascade` chooses the threshold, `serving.engine.cascade` runs the
rule.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_Part):
    """One of the two models, as it was when the threshold was chosen."""

    name: Annotated[str, Field(max_length=64)]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of its model.onnx")]

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.name, self.version

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Guarantee(_Part):
    """A bound on the cascade's error rate above the teacher's, and the validation digits that it follows from."""

    method: Literal["learn-then-test"] = Field(
        description="fixed-sequence testing with exact binomial p-values (Angelopoulos et al. 2021)"
    )
    epsilon: Annotated[float, Field(gt=0, lt=1, description="largest increase of the error rate, as stated")]
    probability: Annotated[float, Field(gt=0, lt=1, description="with which the increase is at most epsilon")]
    digits: Annotated[int, Field(gt=0, description="validation digits that chose the threshold")]
    escalated: Annotated[Count, Field(description="of these digits")]
    worse: Annotated[Count, Field(description="of these digits: wrong, while the teacher alone is right")]
    better: Annotated[Count, Field(description="of these digits: right, while the teacher alone is wrong")]
    bound: Annotated[
        Share, Field(description="upper bound on the probability of `worse`, and so on the increase")
    ]

    @property
    def escalated_share(self) -> float:
        """The share of escalated digits, an estimate of the share in traffic."""
        return self.escalated / self.digits


class Cascade(_Part):
    """The rule, its guarantee, and its results on the test digits, which chose nothing."""

    student: Member
    teacher: Member
    threshold: Annotated[
        Share, Field(description="lowest probability of the student's digit that is not escalated")
    ]
    guarantee: Guarantee
    test_escalated: Annotated[Count, Field(description="of the test digits")]
    test_worse: Annotated[Count, Field(description="of the test digits, as `worse` of the guarantee")]
    test_better: Annotated[Count, Field(description="of the test digits, as `better` of the guarantee")]
