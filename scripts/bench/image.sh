# What scripts/bench-overhead measures, in one image: two servers, interpreters, a compiler, and strace to compare with.
PACKAGES=redis-server,nginx-light,apache2-utils,python3,gcc,libc6-dev,findutils,strace
CONFIG=(--config.cmd sh)
prepare() {
    sed -i 's/^user .*/user root;/; /access_log/d' "$1/etc/nginx/nginx.conf"
    # a source that keeps a compiler busy for a moment
    local i
    for i in $(seq 400); do
        echo "#include <stdio.h>"
        echo "int f$i(int x) { char s[64]; for (int i = 0; i < x; i++) x += snprintf(s, sizeof s, \"%d\", i * $i); return x; }"
    done >"$1/srv/bench.c"
}
