// What a container may do that a recorder cannot follow. Built static.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal)
{
	(void)signal;
	_exit(0);
}

// A call that takes the memory away in which its path stood: when it is over nobody can read the path.
static int vanish(void)
{
	const char *self = "/tmp/vanish";
	int fd = open(self, O_RDWR | O_CREAT, 0644);
	char *path;
	if (fd < 0 || write(fd, self, strlen(self) + 1) < 0) return 1;
	path = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
	return path == MAP_FAILED || truncate(path, 0);
}

static int dir_of_fifo;

static void *close_and_write(void *none)
{
	usleep(100000);
	close(dir_of_fifo);
	return open("/tmp/fifo", O_WRONLY) < 0 ? none : 0;
}

// A call relative to a folder's descriptor that is closed before the call is over.
static int closed(void)
{
	pthread_t other;
	unlink("/tmp/fifo");
	// a number that the next open does not take at once
	if (mkfifo("/tmp/fifo", 0644) || (dir_of_fifo = dup2(open("/tmp", O_RDONLY | O_DIRECTORY), 200)) < 0) return 1;
	if (pthread_create(&other, 0, close_and_write, 0)) return 2;
	return openat(dir_of_fifo, "fifo", O_RDONLY) < 0;
}

// N lookups of long names, no two the same.
static int flood(long n)
{
	char name[256];
	struct stat st;
	while (n-- > 0) {
		snprintf(name, sizeof name, "/tmp/none-%0200ld", n);
		if (!stat(name, &st)) return 1;
	}
	return puts("done") < 0;
}

// N threads at a time, or N processes one after the other that each look at one file.
static void *wait_a_little(void *none)
{
	sleep(2);
	return none;
}

static int threads(long n)
{
	static pthread_t all[100000];
	pthread_attr_t small;
	struct stat st;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (long i = 0; i < n; i++)
		if (pthread_create(&all[i], &small, wait_a_little, 0)) return 1;
	if (stat("/srv/data/statted", &st)) return 2;
	for (long i = 0; i < n; i++) pthread_join(all[i], 0);
	return 0;
}

static int processes(long n)
{
	struct stat st;
	for (long i = 0; i < n; i++) {
		pid_t pid = fork();
		if (!pid) _exit(i == n - 1 && stat("/srv/data/statted", &st));
		if (pid < 0 || waitpid(pid, 0, 0) != pid) return 1;
	}
	return 0;
}

// N forks and more by the children, until no process is left to be had, over and over.
static int bomb(long n)
{
	struct stat st;
	signal(SIGCHLD, SIG_IGN);
	for (long i = 0; i < n; i++) {
		if (fork()) continue;
		for (int deep = 0; deep < 3; deep++)
			if (fork() < 0) break;
		_exit(0);
	}
	return stat("/srv/data/statted", &st);
}

// Opens DIR/0 … DIR/(N-1), by WORKERS processes, each its share.
static int files(const char *dir, long n, long workers)
{
	int status, bad = 0;
	for (long w = 0; w < workers; w++) {
		if (fork()) continue;
		for (long i = w; i < n; i += workers) {
			char name[4096];
			int fd;
			snprintf(name, sizeof name, "%s/%ld/%ld", dir, i / 1000, i);
			if ((fd = open(name, O_RDONLY)) < 0) _exit(1);
			close(fd);
		}
		_exit(0);
	}
	while (wait(&status) > 0) bad |= status;
	return bad != 0;
}

// 2^N mounts in a mount namespace of its own: each step mounts all there are once more.
static int mounts(int n)
{
	char name[32];
	struct stat st;
	if (unshare(CLONE_NEWNS) || mount("none", "/", 0, MS_REC | MS_PRIVATE, 0)) return 1;
	if (mount("none", "/tmp", "tmpfs", 0, 0)) return 2;
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof name, "/tmp/%d", i);
		if (mkdir(name, 0755) || mount("/tmp", name, 0, MS_BIND | MS_REC, 0)) return 3;
	}
	return stat("/srv/data/statted", &st);
}

// Makes TOP and N directories in it, one in the other; their path.
static char *chain(const char *top, int n)
{
	char *path = calloc(1, 4096), *end = path + sprintf(path, "%s", top);
	for (int i = 0; i <= n; i++) {
		if (mkdir(path, 0755)) return 0;
		if (i < n) end += sprintf(end, "/d");
	}
	return path;
}

// A relative name, more than 2,100 directories below DIR: one half of them moved to the end of the other.
static int deeper(const char *dir)
{
	char *a, *b, moved[4096];
	struct stat st;
	if (chdir(dir) || !(a = chain("a", 1050)) || !(b = chain("b", 1050))) return 1;
	snprintf(moved, sizeof moved, "%s/b", a);
	if (rename("b", moved) || chdir(moved) || chdir(b + 2)) return 2;
	return stat("none", &st) != -1;
}

// N times a call that names no path, after MS milliseconds.
static int busy(int ms, long n)
{
	if (puts("ready") < 0 || fflush(stdout)) return 1;
	usleep(1000 * ms);
	while (n-- > 0) syscall(SYS_getpriority, 0, 0);
	return puts("done") < 0;
}

// Connects to a unix socket and leaves again.
static int knock(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(to.sun_path, path, sizeof to.sun_path - 1);
	return fd < 0 || connect(fd, (void *)&to, sizeof to);
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
	} else if (!strcmp(what, "deeper")) {
		return deeper(argv[2]);
	} else if (!strcmp(what, "mounts")) {
		return mounts(atoi(argv[2]));
	} else if (!strcmp(what, "busy")) {
		return busy(atoi(argv[2]), atol(argv[3]));
	} else if (!strcmp(what, "ring")) { // an io_uring, however many entries the kernel minds to give
		char params[120] = { 0 };
		return syscall(SYS_io_uring_setup, 1, params) < 0;
	} else if (!strcmp(what, "knock")) {
		return knock(argv[2]);
	} else if (!strcmp(what, "open")) {
		return open(argv[2], O_RDONLY) < 0 || puts("done") < 0;
	} else if (!strcmp(what, "vanish")) {
		return vanish();
	} else if (!strcmp(what, "closed")) {
		return closed();
	} else if (!strcmp(what, "flood")) {
		return flood(atol(argv[2]));
	} else if (!strcmp(what, "threads")) {
		return threads(atol(argv[2]));
	} else if (!strcmp(what, "processes")) {
		return processes(atol(argv[2]));
	} else if (!strcmp(what, "bomb")) {
		return bomb(atol(argv[2]));
	} else if (!strcmp(what, "files")) {
		return files(argv[2], atol(argv[3]), atol(argv[4]));
	} else if (!strcmp(what, "later")) { // milliseconds, then the words that follow
		if (puts("ready") < 0 || fflush(stdout)) return 7;
		usleep(1000 * atoi(argv[2]));
		execv("/usr/bin/probe", argv + 2);
		return 8;
	} else {
		return 9;
	}
	return 0;
}
