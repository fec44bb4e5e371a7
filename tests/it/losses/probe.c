// What a container may do that a recorder cannot follow. Built static.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void stop(int signal)
{
	(void)signal;
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct stat st;
	if (!strcmp(what, "wait")) {
		signal(SIGTERM, stop);
		for (;;) pause();
	} else if (!strcmp(what, "hello")) {
		return puts("hello") < 0;
	} else if (!strcmp(what, "unknown")) { // a number that no table names
		syscall(1000);
	} else if (!strcmp(what, "negative")) { // no call at all
		return syscall(-1) != -1;
	} else if (!strcmp(what, "deep")) { // a relative name, 300 directories down
		if (chdir("/tmp")) return 1;
		for (int i = 0; i < 300; i++) {
			if (mkdir("d", 0755) && errno != EEXIST) return 2;
			if (chdir("d")) return 3;
		}
		return stat("none", &st) != -1;
	} else {
		return 9;
	}
	return 0;
}
