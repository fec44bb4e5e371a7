// What a container may do that a recorder cannot follow. Built static.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

// N lookups, no two the same.
static int flood(long n)
{
	char name[64];
	struct stat st;
	while (n-- > 0) {
		snprintf(name, sizeof name, "/tmp/none-%ld-of-many-that-are-not-there", n);
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
	} else if (!strcmp(what, "open")) {
		return open(argv[2], O_RDONLY) < 0;
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
