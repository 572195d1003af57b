"""On what the figures were taken."""

import datetime
import os
import platform
import re
import subprocess

from .commands import ROOT


def facts():
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "UDP buffers": f"{read('/proc/sys/net/core/rmem_max')} bytes granted at most "
        "(`net.core.rmem_max`), 4 MiB asked for",
        "Erlang/OTP": output("erl", "-noshell", "-eval",
                             'io:put_chars(erlang:system_info(otp_release) ++ ", ERTS " ++ '
                             "erlang:system_info(version)), halt()."),
        "Rust": output(os.environ.get("RUSTC", "rustc"), "--version"),
        "crates": ", ".join(f"{name} {version(name)}" for name in ("quinn", "quinn-proto", "rustls",
                                                                   "tokio", "rustler")),
    }


def commit():
    change = output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    name = output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    return f"{name}, with changes" if change else name


def processor():
    found = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    return found.group(1) if found else platform.processor()


def version(crate):
    lock = (ROOT / "Cargo.lock").read_text()
    return re.search(rf'name = "{crate}"\nversion = "([^"]+)"', lock).group(1)


def read(path):
    with open(path) as file:
        return file.read().strip()


def output(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
