# Sourced by the other scripts.
say() { printf '%s\n' "$*" >&2; }

# need COMMAND=PACKAGE...: installs the Debian packages whose command (or file) is missing.
need() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || [ -e "${pair%%=*}" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || { say "run as root, or install first: ${missing[*]}"; exit 4; }
    say "installing ${missing[*]}"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

# The pinned Rust toolchain is not something these scripts install.
need_rust() {
    command -v cargo >/dev/null 2>&1 || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null 2>&1 || {
        say "no Rust toolchain: install rustup, then run this again; rust-toolchain.toml names the version"
        exit 4
    }
}

# What building slim needs beside Rust.
need_build() {
    need_rust
    need gcc=gcc pkg-config=pkg-config /usr/include/seccomp.h=libseccomp-dev
}

# sources: the machine's own package sources, one file a line, for mmdebstrap.
sources() {
    local f
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
        [ ! -s "$f" ] || printf '%s\n' "$f"
    done
}

# mirror: the URI of the first deb822 source of this machine, or the first classic one.
mirror() {
    local uri
    uri=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
    [ -n "$uri" ] || uri=$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)
    printf '%s' "${uri:-http://deb.debian.org/debian}"
}
