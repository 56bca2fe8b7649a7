"""The part of sysfs that says how a Jetson's GPU feels, one tree for each SoC, under a folder.

Names and units are the kernel's: load in per mille, temperatures in thousandths of a degree,
frequencies in hertz. The trees were written after what the boards' kernels show (JetPack 5: L4T 35,
6: L4T 36, 7: L4T 38 and 39); they have not been read from boards by this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Soc:
    """Where one SoC has what.

    Attributes:
        load: path of the utilisation; empty: there is none.
        devfreq: name of the GPU's clock.
        zone: type of the GPU's thermal zone.
        clocks: available frequencies in Hz.
    """

    load: str
    devfreq: str
    zone: str
    clocks: tuple[int, ...]


SOCS = {
    "xavier": Soc(
        "sys/devices/gpu.0/load", "17000000.gv11b", "GPU-therm", (114750000, 675750000, 1377000000)
    ),
    "xavier-gv11b": Soc(
        "sys/devices/17000000.gv11b/load", "17000000.gv11b", "GPU-therm", (114750000, 1377000000)
    ),
    "orin-jetpack5": Soc(
        "sys/devices/gpu.0/load", "17000000.ga10b", "GPU-therm", (306000000, 1300500000)
    ),
    "orin-jetpack5-ga10b": Soc(
        "sys/devices/17000000.ga10b/load", "17000000.ga10b", "GPU-therm", (306000000, 1300500000)
    ),
    "orin-beside-its-clock": Soc(
        "sys/class/devfreq/17000000.gpu/device/load",
        "17000000.gpu",
        "gpu-thermal",
        (306000000, 1020000000),
    ),
    "orin": Soc(
        "sys/devices/platform/gpu.0/load",
        "17000000.gpu",
        "gpu-thermal",
        (306000000, 612000000, 1020000000),
    ),
    "orin-bus": Soc(
        "sys/devices/platform/bus@0/17000000.gpu/load",
        "17000000.gpu",
        "gpu-thermal",
        (306000000, 612000000, 1020000000),
    ),
    "orin-platform": Soc(
        "sys/devices/platform/17000000.gpu/load",
        "17000000.gpu",
        "gpu-thermal",
        (306000000, 612000000, 1020000000),
    ),
    "thor": Soc("", "gpu-gpc-0", "gpu-thermal", (315000000, 900000000, 1575000000)),
}


class JetsonTree:
    """A tree that can be changed as a board's changes.

    Args:
        root: an empty folder; the tree is below ``sys``.
        soc: a name in `SOCS`.
    """

    def __init__(self, root: Path, soc: str) -> None:
        self.root = root
        self.soc = SOCS[soc]
        self._write({"sys/class/thermal/thermal_zone0/type": "cpu-thermal"})
        self._write({"sys/class/thermal/thermal_zone0/temp": "45000"})
        zone = "sys/class/thermal/thermal_zone1"
        self._write(
            {
                f"{zone}/type": self.soc.zone,
                f"{zone}/trip_point_0_type": "passive",
                f"{zone}/trip_point_0_temp": "95000",
                f"{zone}/trip_point_1_type": "hot",
                f"{zone}/trip_point_1_temp": "103000",
                f"{zone}/trip_point_2_type": "critical",
                f"{zone}/trip_point_2_temp": "104500",
                "sys/class/thermal/cooling_device0/type": "pwm-fan",
                "sys/class/thermal/cooling_device0/cur_state": "2",
                "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
            }
        )
        clock = f"sys/class/devfreq/{self.soc.devfreq}"
        self._write({f"{clock}/available_frequencies": " ".join(map(str, self.soc.clocks))})
        for other in ("gpu-nvd-0", "31000000.emc"):  # video engines, memory
            self._write({f"sys/class/devfreq/{other}/available_frequencies": "1 2"})
            self._write({f"sys/class/devfreq/{other}/max_freq": "1"})
        sensor = "sys/class/hwmon/hwmon0"
        self._write({f"{sensor}/name": "ina3221", f"{sensor}/curr1_crit_alarm": "0"})
        self.set_clock_limit(self.soc.clocks[-1])
        self.set_load(0)
        self.set_temperature(45.0)
        self.set_throttled(0)

    def set_load(self, per_mille: int) -> None:
        """Utilisation over the last period."""
        if self.soc.load:
            self._write({self.soc.load: str(per_mille)})

    def set_temperature(self, degrees: float) -> None:
        """Of the GPU, Celsius."""
        self._write({"sys/class/thermal/thermal_zone1/temp": str(round(degrees * 1000))})

    def set_throttled(self, state: int) -> None:
        """State of the GPU's cooling device; 0: not throttled."""
        self._write({"sys/class/thermal/cooling_device1/cur_state": str(state)})

    def set_overcurrent(self, state: int) -> None:
        """Alarm of the board's current sensor."""
        self._write({"sys/class/hwmon/hwmon0/curr1_crit_alarm": str(state)})

    def set_clock_limit(self, hertz: int) -> None:
        """Highest clock that the power mode allows."""
        self._write({f"sys/class/devfreq/{self.soc.devfreq}/max_freq": str(hertz)})

    def _write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
