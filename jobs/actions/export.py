"""`neuralign export`: similarity matrices as a file of rsatoolbox or xarray."""

from __future__ import annotations

from pathlib import Path

from jobs.actions.output import display_path, stdout_console
from jobs.results.matrices import read_matrices, to_rdms, to_xarray
from storage.database import open_store
from storage.errors import UserError
from storage.store.commit import new_file
from storage.store.paths import parse_store_path

_RDMS, _XARRAY = ".h5", ".nc"


def export_matrices(store: str, file: Path, condition: str) -> None:
    """Write the similarity matrices that fulfill an SQL condition; the file's suffix selects the format.

    Raises:
        UserError: for another suffix, a file that exists, a missing package, and if there are none.
    """
    if file.suffix not in (_RDMS, _XARRAY):
        raise UserError(
            f"{file}: expected the suffix {_RDMS} (rsatoolbox) or {_XARRAY} (xarray, NetCDF)"
        )
    with open_store(parse_store_path(store)) as connection:
        matrices = read_matrices(connection, condition)
    with new_file(file) as temporary:
        if file.suffix == _XARRAY:
            # NetCDF 3, which SciPy writes.
            to_xarray(matrices).to_netcdf(temporary, engine="scipy")
        else:
            rdms = to_rdms(matrices)
            try:
                rdms.save(str(temporary), file_type="hdf5")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{file}: rsatoolbox writes only ASCII, not {error.object!r}; use a .nc file"
                ) from error
    count, n = len(matrices.values), len(matrices.concepts)
    stdout_console().print(f"{count:,} matrices of {n:,} concepts: {display_path(file)}")
