from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from tombola.errors import DataError
from tombola.store.tables import (
    CostRow,
    Row,
    columns,
    read_costs,
    read_results,
    sorted_rows,
    to_csv,
    write_costs,
    write_results,
)

RESULTS_HEADER = (
    "task,data,method,arm,networks,rewind_steps,precision,compress,seed,round,sparsity,"
    "sparsity_all,metric,value,n,step"
)
COSTS_HEADER = (
    "task,data,method,arm,networks,rewind_steps,precision,compress,seed,round,sparsity,"
    "sparsity_all,train_flops,train_seconds,search_flops,search_seconds,eval_seconds,"
    "macs_per_sample,parameters,nonzero_parameters,ticket_bytes,model_bytes,peak_memory_bytes"
)


def row(**changes):
    values = {
        "task": "vae",
        "data": "digits",
        "method": "imp",
        "arm": "ticket",
        "networks": "all",
        "rewind_steps": 10,
        "precision": "fp32",
        "seed": 0,
        "round": 1,
        "sparsity": 0.2,
        "sparsity_all": 0.19,
        "metric": "elbo",
        "value": -1.5,
        "n": 360,
        "step": 200,
    }
    return Row(**(values | changes))


def test_columns_are_the_contracts():
    assert ",".join(columns(Row)) == RESULTS_HEADER + ",draw"
    assert ",".join(columns(CostRow)) == COSTS_HEADER + ",draw"


def test_a_draw_is_the_last_column_where_some_row_has_one(tmp_path):
    once, again = row(arm="dense", round=0), row(arm="reinit", draw=2)
    assert to_csv([once], Row).splitlines()[0] == RESULTS_HEADER
    text = to_csv([row(arm="reinit", draw=11), again, once], Row)
    assert text.splitlines() == [
        RESULTS_HEADER + ",draw",
        "vae,digits,imp,dense,all,10,fp32,,0,0,0.2,0.19,elbo,-1.5,360,200,",
        "vae,digits,imp,reinit,all,10,fp32,,0,1,0.2,0.19,elbo,-1.5,360,200,2",
        "vae,digits,imp,reinit,all,10,fp32,,0,1,0.2,0.19,elbo,-1.5,360,200,11",
    ]
    path = tmp_path / "results.csv"
    write_results(path, [again, once])
    assert read_results(path) == [once, again]
    path.write_text(text.replace(",200,2\n", ",200,x\n"))
    with pytest.raises(DataError, match="line 3: draw is 'x', not a whole number"):
        read_results(path)
    path.write_text(text.replace("step,draw", "draw,step"))
    with pytest.raises(DataError, match="has the columns"):
        read_results(path)


def test_results_bytes(tmp_path):
    path = tmp_path / "results.csv"
    dense = row(arm="dense", rewind_steps=None, round=0, sparsity=0.0, sparsity_all=0.0)
    diverged = row(round=2, sparsity=0.36, sparsity_all=0.34, metric="diverged", value=1, n=None)
    comma = row(networks="decoder,encoder", value=0.1 + 0.2)
    write_results(path, [diverged, row(), comma, dense])
    assert (
        path.read_bytes()
        == (
            RESULTS_HEADER + "\n"
            "vae,digits,imp,dense,all,,fp32,,0,0,0.0,0.0,elbo,-1.5,360,200\n"
            "vae,digits,imp,ticket,all,10,fp32,,0,1,0.2,0.19,elbo,-1.5,360,200\n"
            "vae,digits,imp,ticket,all,10,fp32,,0,2,0.36,0.34,diverged,1,,200\n"
            'vae,digits,imp,ticket,"decoder,encoder",10,fp32,,0,1,0.2,0.19,elbo,'
            "0.30000000000000004,360,200\n"
        ).encode()
    )
    assert read_results(path) == [dense, row(), diverged, comma]
    assert os.listdir(tmp_path) == ["results.csv"]


def test_costs_bytes(tmp_path):
    path = tmp_path / "costs.csv"
    cost = CostRow(
        task="vae",
        data="digits",
        method="early-bird",
        arm="ticket",
        networks="all",
        rewind_steps=0,
        precision="bf16",
        compress=0.5,
        seed=1,
        round=1,
        sparsity=0.5,
        sparsity_all=0.5,
        train_flops=123456789012345,
        train_seconds=1.25,
        search_flops=2e21,
        search_seconds=3.5,
        eval_seconds=0.5,
        macs_per_sample=1000,
        parameters=10,
        nonzero_parameters=5,
        ticket_bytes=99,
        model_bytes=None,
        peak_memory_bytes=7,
    )
    write_costs(path, [cost])
    assert (
        path.read_bytes()
        == (
            COSTS_HEADER + "\n"
            "vae,digits,early-bird,ticket,all,0,bf16,0.5,1,1,0.5,0.5,"
            "123456789012345,1.25,2e+21,3.5,0.5,1000,10,5,99,,7\n"
        ).encode()
    )
    assert read_costs(path) == [cost]


def test_numbers_sort_as_numbers_and_empty_cells_first():
    rewinds = [row(rewind_steps=k) for k in (10, 9, None, 100)]
    assert [r.rewind_steps for r in sorted_rows(rewinds)] == [None, 9, 10, 100]
    seeds = [row(seed=s) for s in (10, 2)]
    assert [r.seed for r in sorted_rows(seeds)] == [2, 10]
    values = [row(value=v) for v in (math.nan, 10, 9.5, math.inf, -1e-9)]
    assert [repr(r.value) for r in sorted_rows(values)] == ["-1e-09", "9.5", "10", "inf", "nan"]


def test_earlier_columns_sort_first():
    late, early = row(arm="dense", seed=5), row(arm="reinit", seed=0)
    assert sorted_rows([early, late]) == [late, early]
    assert sorted_rows([row(data="mnist", method="a"), row(method="b")])[0].data == "digits"


def test_same_bytes_whatever_the_order_and_the_repetition():
    rows = [row(seed=s, round=r, value=s / (r + 1)) for s in range(3) for r in range(4)]
    text = to_csv(rows, Row)
    assert to_csv(rows[::-1] + rows[:5], Row) == text
    assert text.count("\n") == 13


def test_rows_that_differ_in_one_cell_are_both_kept():
    assert to_csv([row(step=1), row(step=2)], Row).count("\n") == 3


def test_numpy_scalars_and_negative_zero_do_not_reach_the_file():
    odd = row(value=np.float64(0.5), sparsity=np.float64(-0.0), seed=np.int64(3), n=np.int32(7))
    assert to_csv([odd], Row).splitlines()[1] == (
        "vae,digits,imp,ticket,all,10,fp32,,3,1,0.0,0.19,elbo,0.5,7,200"
    )
    assert type(odd.value) is float
    assert type(row(value=np.float32(0.1)).value) is float
    assert repr(row(value=np.float32(0.1)).value) == "0.10000000149011612"
    assert repr(row(sparsity=0).sparsity) == "0.0"


def test_floats_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "results.csv"
    rng = np.random.default_rng(0)
    rows = sorted_rows(row(value=float(v)) for v in rng.standard_normal(50) * 1e-7)
    write_results(path, rows)
    assert [r.value.hex() for r in read_results(path)] == [r.value.hex() for r in rows]


def test_rows_are_frozen():
    with pytest.raises(AttributeError):
        row().seed = 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "results.csv"
    write_results(path, [row()])
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_results(path, [row(), row(seed=1)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.csv"]


LINE = "vae,digits,imp,ticket,all,10,fp32,,0,1,0.2,0.19,elbo,-1.5,360,200"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns ''"),
        ("a,b\n1,2\n", "has the columns 'a,b'"),
        (RESULTS_HEADER + "\n1,2\n", "line 2: 2 cells, not 16"),
        (RESULTS_HEADER + "\n" + LINE.replace("0.19", "x") + "\n", "sparsity_all is 'x'"),
        (RESULTS_HEADER + "\n" + LINE.replace(",0,1,", ",0.5,1,") + "\n", "seed is '0.5'"),
        (RESULTS_HEADER + "\n" + LINE.replace("-1.5", "") + "\n", "value is ''"),
        (RESULTS_HEADER + "\n" + '"' + LINE, "is not a CSV file"),
    ],
)
def test_unsound_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_results(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_results(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_costs(tmp_path / "binary.csv")


def test_torch_is_not_imported():
    code = "import sys, tombola.store.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
