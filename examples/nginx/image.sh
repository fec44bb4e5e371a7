# A small web server: nginx with two static pages.
PACKAGES=nginx-light
CONFIG=(--config.cmd nginx --config.cmd -g --config.cmd 'daemon off;'
    --config.exposedports 80/tcp --config.stopsignal SIGQUIT)
prepare() {
    ln -sf /dev/stdout "$1/var/log/nginx/access.log"
    ln -sf /dev/stderr "$1/var/log/nginx/error.log"
    printf '<h1>It works</h1>\n' >"$1/var/www/html/index.html"
    printf 'a page of plain text\n' >"$1/var/www/html/page.txt"
    rm -f "$1/var/www/html/index.nginx-debian.html"
}
