// io_uring without a library: one ring for one operation.
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// What the operation came to, a negative errno where it failed; ends the process with the errno where there is
// no ring to be had.
static long uring(struct io_uring_sqe what)
{
	struct io_uring_params p = { 0 };
	int ring = syscall(SYS_io_uring_setup, 1, &p);
	if (ring < 0) _exit(errno);
	size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe) + p.sq_off.array + p.sq_entries * 4;
	char *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry =
		mmap(0, p.sq_entries * sizeof what, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (at == MAP_FAILED || (void *)entry == MAP_FAILED) _exit(errno);
	*entry = what;
	*(unsigned *)(at + p.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(at + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) _exit(errno);
	int result = ((struct io_uring_cqe *)(at + p.cq_off.cqes))->res;
	close(ring);
	return result;
}
