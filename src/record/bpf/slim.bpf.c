// SPDX-License-Identifier: GPL-2.0
//
// The kernel side of slim's BPF recorder. It sees every task below one cgroup and reports, each only
// once per phase: the calls made, the calls refused, and the paths handed to path-taking calls.
// Forks, execs and exits are all reported, because the reader names the users of files by them.
//
// Bystanders (tasks outside the cgroup) leave after one helper call. For the recorded ones the
// steady state is one lookup in `threads` and one in an array.
//
// Kernel types are cut down to the fields in use; CO-RE finds their offsets when the object is
// loaded. Needs Linux 5.17 (bpf_loop) with BTF.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;

#define CORE __attribute__((preserve_access_index))

struct qstr { const unsigned char *name; } CORE;
struct super_block { u32 s_dev; struct dentry *s_root; } CORE;
struct inode { unsigned long i_ino; } CORE;
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
} CORE;
struct vfsmount { struct dentry *mnt_root; } CORE;
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} CORE;
struct path { struct vfsmount *mnt; struct dentry *dentry; } CORE;
struct fs_struct { struct path root, pwd; } CORE;
struct file { struct path f_path; } CORE;
struct fdtable { unsigned int max_fds; struct file **fd; } CORE;
struct files_struct { struct fdtable *fdt; } CORE;
struct mm_struct { unsigned long arg_start; struct file *exe_file; } CORE;
struct ns_common { unsigned int inum; } CORE;
struct pid_namespace { struct ns_common ns; } CORE;
struct upid { int nr; struct pid_namespace *ns; } CORE;
struct pid { unsigned int level; struct upid numbers[1]; } CORE;
struct mnt_namespace { struct ns_common ns; } CORE;
struct nsproxy { struct mnt_namespace *mnt_ns; } CORE;
struct signal_struct { struct { int counter; } live; } CORE;
struct thread_info { u32 status; } CORE;
struct task_struct {
	struct thread_info thread_info;
	int pid, tgid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct pid *thread_pid;
	struct fs_struct *fs;
	struct files_struct *files;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
} CORE;
struct linux_binprm { const char *filename; const char *interp; } CORE;
struct pt_regs { unsigned long bx, bp, r10, r9, r8, cx, dx, si, di, orig_ax; } CORE;
struct io_kiocb { u8 opcode; } CORE;

#define TS_COMPAT 2
#define AT_FDCWD (-100)
#define CALLS 1024
#define PHASES 8
#define MAIN 100         // role: the main container, in the current phase
#define UNRECORDED 101   // role: seen, never counted; other roles are phase numbers

// ---- what the reader sets -------------------------------------------------------------------

struct config {
	u32 phase;       // of the main container
	u32 pid_ns;      // inode number of the reader's pid namespace
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct config); } config SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_CGROUP_ARRAY); __uint(max_entries, 1); __uint(key_size, 4); __uint(value_size, 4); } run SEC(".maps");
// cgroup id → role; each exec has a leaf of its own, and an hour has many. Adding to a full one is an error.
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 65536); __type(key, u64); __type(value, u32); } roles SEC(".maps");
// super block device → 1, for the overlays watched
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16384); __type(key, u32); __type(value, u32); } overlays SEC(".maps");
// slim's own helpers outside the cgroup, by process id in the reader's namespace
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16384); __type(key, u32); __type(value, u32); } hosts SEC(".maps");

// What is known about a call, by architecture * CALLS + number.
struct call {
	u8 path[2];      // 1 + index of a path argument; 0 none
	u8 dir[2];       // 1 + index of its directory descriptor; 0: the working directory
	u8 flags;        // 1 + index of the argument that tells what the call does with the path
	u8 value;        // 1 + index of an argument worth recording with the call
	u8 sockaddr;     // 1 + index of a socket address
	u8 pad;
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2 * CALLS); __type(key, u32); __type(value, struct call); } table SEC(".maps");

// ---- what this side keeps -------------------------------------------------------------------

struct thread {
	u32 tgid;        // in the reader's namespace
	u32 role;
	u32 entered;     // runs what the image holds: executed with an overlay as its root
	u32 call;        // 1 + number | arch << 31 of the call it is in
};
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 65536); __type(key, u32); __type(value, struct thread); } threads SEC(".maps");
// (architecture, phase, number) → bits of what was reported
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2 * PHASES * CALLS); __type(key, u32); __type(value, u64); } seen_calls SEC(".maps");
// Hash of what was reported. Losing an entry only means a second report.
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 131072); __type(key, u64); __type(value, u32); } seen SEC(".maps");

enum loss { RING_FULL, MAP_FULL, STRING_FAULT, STRING_CUT, LOSSES };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, LOSSES); __type(key, u32); __type(value, u64); } losses SEC(".maps");

struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 16 << 20); } ring SEC(".maps");

// ---- events ---------------------------------------------------------------------------------

enum kind { SIGHT = 1, FORK, EXEC, EXIT, CALL, REFUSED, VALUE, PATH, HOST };

enum flags {
	ENTERED = 1,
	BASE_ON_OVERLAY = 2,
	BASE_UNKNOWN = 4,
	ROOT_ON_OVERLAY = 8,
	EXE_ON_OVERLAY = 16,
	LAST_THREAD = 32,
};

struct head {
	u8 kind, arch, phase, role;
	u32 flags;
	u32 tgid;        // in the reader's namespace, as all process ids here
	u32 other;       // fork: the child; path: which of the call's paths
	u64 time;        // ns, CLOCK_MONOTONIC
	u32 uid;
	u32 number;
	s32 result;
	u32 mnt_ns;
	u64 value;
	u16 lens[6];     // bytes of each piece of data
	u32 pad;
};

#define DATA 8192        // pieces start below this
struct out {
	struct head head;
	u8 data[DATA + 4096];
};
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct out); } scratch SEC(".maps");

static __always_inline void lose(u32 kind)
{
	u64 *n = bpf_map_lookup_elem(&losses, &kind);
	if (n) __sync_fetch_and_add(n, 1);
}

static __always_inline struct out *out(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline u32 cfg_phase(void)
{
	u32 zero = 0;
	struct config *c = bpf_map_lookup_elem(&config, &zero);
	return c ? c->phase & (PHASES - 1) : 0;
}

static __always_inline u32 phase_of(struct thread *t)
{
	if (!t->entered) return 0;
	return t->role < PHASES ? t->role : cfg_phase();
}

static __always_inline void begin(struct out *o, u8 kind, struct thread *t)
{
	__builtin_memset(&o->head, 0, sizeof(o->head));
	o->head.kind = kind;
	o->head.time = bpf_ktime_get_ns();
	o->head.uid = (u32)bpf_get_current_uid_gid();
	o->head.tgid = t->tgid;
	o->head.role = t->role;
	o->head.phase = phase_of(t);
	o->head.flags = t->entered ? ENTERED : 0;
}

static __always_inline int send(struct out *o, u32 off)
{
	long rc = bpf_ringbuf_output(&ring, o, sizeof(o->head) + (off & (2 * DATA - 1) & 0x2fff), 0);
	if (rc) lose(RING_FULL);
	return rc == 0;
}

// The process's id in the reader's pid namespace; 0 if it has none there.
static __noinline u32 reader_pid(u64 task_addr)
{
	struct task_struct *task = (void *)task_addr;
	u32 zero = 0;
	struct config *c = bpf_map_lookup_elem(&config, &zero);
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	u32 level = BPF_CORE_READ(pid, level);
	u64 at = (u64)pid + bpf_core_field_offset(pid->numbers);
	if (!c) return 0;
	for (u32 i = 0; i < 16; i++) {
		struct upid number;
		unsigned int inum;
		if (i > level) break;
		bpf_probe_read_kernel(&number, sizeof(number), (void *)(at + i * sizeof(number)));
		inum = BPF_CORE_READ(number.ns, ns.inum);
		if (inum == c->pid_ns) return number.nr;
	}
	return 0;
}

// ---- paths ----------------------------------------------------------------------------------

// A walk from a dentry up to the root of its overlay, or to the top of the mount tree.
struct walk {
	u64 dentry, mnt;
	u32 off, on_overlay, done, crossed;
};

static __always_inline int watched(struct super_block *sb)
{
	u32 dev = BPF_CORE_READ(sb, s_dev);
	return bpf_map_lookup_elem(&overlays, &dev) != 0;
}

static long step_up(u32 index, void *ctx)
{
	struct walk *w = ctx;
	struct dentry *d = (void *)w->dentry;
	struct vfsmount *m = (void *)w->mnt;
	struct dentry *parent = BPF_CORE_READ(d, d_parent);
	struct super_block *sb = BPF_CORE_READ(d, d_sb);
	struct out *o;
	long n;

	if (watched(sb)) {
		if (!w->crossed) w->on_overlay = 1;
		// inside the overlay the tree's own path counts, whatever mount led here
		if (d == parent) { w->done = 1; return 1; }
	} else if (m && d == BPF_CORE_READ(m, mnt_root)) {
		struct mount *mount = (void *)m - bpf_core_field_offset(struct mount, mnt);
		struct mount *up = BPF_CORE_READ(mount, mnt_parent);
		if (up == mount) { w->done = 1; return 1; }
		w->dentry = (u64)BPF_CORE_READ(mount, mnt_mountpoint);
		w->mnt = (u64)up + bpf_core_field_offset(struct mount, mnt);
		w->crossed = 1;
		return 0;
	} else if (d == parent) {
		w->done = 1;
		return 1;
	}
	o = out();
	if (!o) return 1;
	if (w->off >= DATA - 256) return 1;
	n = bpf_probe_read_kernel_str(&o->data[w->off & (DATA - 1)], 256, BPF_CORE_READ(d, d_name.name));
	if (n > 0) w->off += n;
	w->dentry = (u64)parent;
	return 0;
}

// Appends the names from a dentry upwards at `off`, each with a NUL, leaf first. Returns the bytes
// written, and in the high half whether the dentry is on a watched overlay. Global, so that the
// verifier looks at it once and not for each caller.
__noinline u64 put_path(u64 dentry, u64 mnt, u32 off)
{
	struct walk w = { .dentry = dentry, .mnt = mnt, .off = off };
	if (!dentry) return 0;
	bpf_loop(256, step_up, &w, 0);
	if (!w.done) lose(STRING_CUT);
	return (u64)w.on_overlay << 32 | (u32)(w.off - off);
}

static __always_inline u64 mix(u64 h, u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
	return h ^ (h >> 29);
}

// True the first time a key is seen.
static __always_inline int first(u64 key)
{
	u32 one = 1;
	if (bpf_map_lookup_elem(&seen, &key)) return 0;
	bpf_map_update_elem(&seen, &key, &one, BPF_ANY);
	return 1;
}

struct hash { u64 h; u32 words; };

static long hash_word(u32 index, void *ctx)
{
	struct hash *hash = ctx;
	struct out *o = out();
	if (!o || index >= hash->words) return 1;
	hash->h = mix(hash->h, *(u64 *)&o->data[(index & 511) * 8]);
	return 0;
}

// `data` up to `len`, whose last word is filled up with zeros.
__noinline u64 hash_data(u64 h, u32 len)
{
	struct hash hash = { .h = h, .words = (len + 7) / 8 };
	bpf_loop(512, hash_word, &hash, 0);
	return hash.h;
}

static __always_inline u64 dentry_id(struct dentry *d)
{
	struct inode *inode = BPF_CORE_READ(d, d_inode);
	u64 h = mix((u64)d, (u64)BPF_CORE_READ(d, d_parent));
	return inode ? mix(h, BPF_CORE_READ(inode, i_ino)) : h;
}

// Reports the string in `data` (`len` bytes with its NUL) as a path used from `base`.
static __always_inline void report_path(struct out *o, struct thread *t, u32 len, struct path *base,
					struct task_struct *task, u64 key)
{
	struct fs_struct *fs = BPF_CORE_READ(task, fs);
	struct dentry *root = BPF_CORE_READ(fs, root.dentry);
	u32 off = len;
	u64 got;

	if (!fs) return;
	key = mix(key, dentry_id(root));
	if (base && base->dentry) key = mix(key, dentry_id(base->dentry));
	if (!first(key)) return;
	o->head.mnt_ns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	o->head.lens[0] = len;
	if (base && base->dentry) {
		got = put_path((u64)base->dentry, (u64)base->mnt, off);
		if (got >> 32) o->head.flags |= BASE_ON_OVERLAY;
		o->head.lens[1] = got;
		off += (u32)got;
	} else if (base) {
		o->head.flags |= BASE_UNKNOWN;
	}
	got = put_path((u64)root, (u64)BPF_CORE_READ(fs, root.mnt), off);
	if (got >> 32) o->head.flags |= ROOT_ON_OVERLAY;
	o->head.lens[2] = got;
	off += (u32)got;
	if (!send(o, off)) bpf_map_delete_elem(&seen, &key);
}

static __always_inline struct file *file_of(struct task_struct *task, s32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **fds, *file = 0;
	if (fd < 0 || (u32)fd >= BPF_CORE_READ(fdt, max_fds)) return 0;
	fds = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	return file;
}

static __always_inline u64 arg(struct pt_regs *regs, u32 arch, u32 index)
{
	u64 v;
	if (arch) {
		switch (index) {
		case 0: v = BPF_CORE_READ(regs, bx); break;
		case 1: v = BPF_CORE_READ(regs, cx); break;
		case 2: v = BPF_CORE_READ(regs, dx); break;
		case 3: v = BPF_CORE_READ(regs, si); break;
		case 4: v = BPF_CORE_READ(regs, di); break;
		default: v = BPF_CORE_READ(regs, bp); break;
		}
		return (u32)v;
	}
	switch (index) {
	case 0: return BPF_CORE_READ(regs, di);
	case 1: return BPF_CORE_READ(regs, si);
	case 2: return BPF_CORE_READ(regs, dx);
	case 3: return BPF_CORE_READ(regs, r10);
	case 4: return BPF_CORE_READ(regs, r8);
	default: return BPF_CORE_READ(regs, r9);
	}
}

struct use {
	u32 arch, nr, which;
	s32 ret;
};

// One path argument of a finished call.
static __noinline int path_used(struct use *u, struct pt_regs *regs, struct thread *t, struct call *c)
{
	struct task_struct *task;
	struct out *o = out();
	struct path base = {};
	u64 ptr, key, flags = 0;
	u32 dir, index;
	long n;

	if (!o || !u || !regs || !t || !c) return 0;
	task = (void *)bpf_get_current_task();
	if (u->which == 2) {
		u16 family = 0;
		ptr = arg(regs, u->arch, c->sockaddr - 1);
		if (!ptr) return 0;
		if (bpf_probe_read_user(&family, sizeof(family), (void *)ptr)) {
			if (u->ret >= 0) lose(STRING_FAULT);
			return 0;
		}
		if (family != 1) return 0; // AF_UNIX
		ptr += 2;
		dir = 0;
	} else {
		index = c->path[u->which & 1];
		dir = c->dir[u->which & 1];
		ptr = arg(regs, u->arch, index - 1);
		if (!ptr) return 0;
	}
	n = bpf_probe_read_user_str(o->data, u->which == 2 ? 108 : 4096, (void *)ptr);
	if (n < 0) {
		if (u->ret != -14) lose(STRING_FAULT);
		return 0;
	}
	// an empty string means the descriptor itself, which was seen when it was opened
	if (n <= 1 || n > 4096) return 0;
	*(u64 *)&o->data[n & 0x1fff] = 0;
	if (c->flags) flags = arg(regs, u->arch, c->flags - 1);
	begin(o, PATH, t);
	o->head.arch = u->arch;
	o->head.number = u->nr;
	o->head.result = u->ret;
	o->head.other = u->which;
	o->head.value = flags;
	key = mix((u64)u->nr | (u64)u->arch << 16 | (u64)u->which << 20 | (u64)o->head.phase << 24 | (u64)t->role << 32,
		  u->ret < 0 ? u->ret : 0);
	key = hash_data(mix(key, flags), n);
	if (o->data[0] == '/') {
		report_path(o, t, n, 0, task, key);
		return 0;
	}
	s32 fd = dir ? (s32)arg(regs, u->arch, dir - 1) : AT_FDCWD;
	if (fd == AT_FDCWD) {
		struct fs_struct *fs = BPF_CORE_READ(task, fs);
		base.dentry = BPF_CORE_READ(fs, pwd.dentry);
		base.mnt = BPF_CORE_READ(fs, pwd.mnt);
	} else {
		struct file *file = file_of(task, fd);
		if (file) {
			base.dentry = BPF_CORE_READ(file, f_path.dentry);
			base.mnt = BPF_CORE_READ(file, f_path.mnt);
		}
	}
	report_path(o, t, n, &base, task, key);
	return 0;
}

// ---- tasks ----------------------------------------------------------------------------------

static __always_inline int recorded(void)
{
	return bpf_current_task_under_cgroup(&run, 0) == 1;
}

// The role of the nearest cgroup above the current task that has one.
static __always_inline u32 role_of_current(void)
{
	u32 role = MAIN;
	for (int level = 0; level < 32; level++) {
		u64 id = bpf_get_current_ancestor_cgroup_id(level);
		u32 *found;
		if (!id) break;
		found = bpf_map_lookup_elem(&roles, &id);
		if (found) role = *found;
	}
	return role;
}

// A task of the cgroup that no fork announced: something outside moved or cloned it in.
static __noinline int sight(u32 tid)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct thread t = {};
	struct out *o = out();
	t.tgid = reader_pid((u64)task);
	t.role = role_of_current();
	if (bpf_map_update_elem(&threads, &tid, &t, BPF_ANY)) {
		lose(MAP_FULL);
		return 0;
	}
	if (!o) return 0;
	begin(o, SIGHT, &t);
	send(o, 0);
	return 0;
}

static __always_inline struct thread *current_thread(void)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct thread *t = bpf_map_lookup_elem(&threads, &tid);
	if (t) return t;
	sight(tid);
	return bpf_map_lookup_elem(&threads, &tid);
}

// Reports a call under `bit` once per phase.
static __always_inline void note_call(struct thread *t, u8 kind, u32 arch, u32 nr, s32 ret, u64 bit)
{
	u32 at = (arch * PHASES + phase_of(t)) * CALLS + (nr < CALLS ? nr : CALLS - 1);
	u64 *bits = bpf_map_lookup_elem(&seen_calls, &at);
	struct out *o;
	if ((s32)nr < 0) return; // no call: the kernel answers ENOSYS to every negative number
	if (!bits || (*bits & bit)) return;
	o = out();
	if (!o) return;
	begin(o, kind, t);
	o->head.arch = arch;
	o->head.number = nr;
	o->head.result = ret;
	if (send(o, 0)) __sync_fetch_and_or(bits, bit);
}

static __always_inline void note_value(struct thread *t, u32 arch, u32 nr, u64 value)
{
	u64 key = mix(mix(0x5a5a, (u64)nr | (u64)arch << 32), value);
	struct out *o;
	key = mix(key, phase_of(t));
	if (!first(key)) return;
	o = out();
	if (!o) return;
	begin(o, VALUE, t);
	o->head.arch = arch;
	o->head.number = nr;
	o->head.value = value;
	if (!send(o, 0)) bpf_map_delete_elem(&seen, &key);
}

static __always_inline struct call *call_of(u32 arch, u32 nr)
{
	u32 at = arch * CALLS + nr;
	if (nr >= CALLS) return 0;
	return bpf_map_lookup_elem(&table, &at);
}

static __always_inline u32 compat(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	return (BPF_CORE_READ(task, thread_info.status) & TS_COMPAT) != 0;
}

SEC("tp_btf/sys_enter")
int slim_enter(u64 *ctx)
{
	struct thread *t;
	struct call *c;
	u32 arch, nr = ctx[1];
	if (!recorded()) return 0;
	t = current_thread();
	if (!t) return 0;
	arch = compat();
	t->call = (arch << 31 | (nr & 0x7fffffff)) + 1;
	if (t->role == UNRECORDED) return 0;
	note_call(t, CALL, arch, nr, 0, 1);
	c = call_of(arch, nr);
	if (c && c->value) note_value(t, arch, nr, arg((void *)ctx[0], arch, c->value - 1));
	return 0;
}

static __always_inline u64 refusal_bit(s32 ret)
{
	return 2ULL << (ret < 0 && ret > -62 ? -ret : 0);
}

SEC("tp_btf/sys_exit")
int slim_exit(u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct use u = { .ret = (s32)ctx[1] };
	struct thread *t;
	struct call *c;
	u32 call;

	if (!recorded()) return 0;
	t = bpf_map_lookup_elem(&threads, &tid);
	if (!t) {
		// moved in during this call: whether it was entered is unknown
		sight(tid);
		return 0;
	}
	call = t->call;
	t->call = 0;
	if (t->role == UNRECORDED) return 0;
	if (!call) {
		s32 nr = (s32)BPF_CORE_READ(regs, orig_ax);
		if (nr >= 0) note_call(t, REFUSED, compat(), nr, u.ret, refusal_bit(u.ret));
		return 0;
	}
	call -= 1;
	u.arch = call >> 31;
	u.nr = call & 0x7fffffff;
	c = call_of(u.arch, u.nr);
	if (!c) return 0;
	if (c->path[0]) path_used(&u, regs, t, c);
	if (c->path[1]) {
		u.which = 1;
		path_used(&u, regs, t, c);
	}
	if (c->sockaddr) {
		u.which = 2;
		path_used(&u, regs, t, c);
	}
	return 0;
}

SEC("tp_btf/sched_process_fork")
int slim_fork(u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	u32 ptid = BPF_CORE_READ(parent, pid);
	u32 ctid = BPF_CORE_READ(child, pid), ctgid = BPF_CORE_READ(child, tgid);
	struct thread *t = bpf_map_lookup_elem(&threads, &ptid);
	struct thread copy = {};
	struct out *o = out();
	u32 one = 1, pid;

	if (!o) return 0;
	if (t) {
		copy = *t;
		if (ctid == ctgid) copy.tgid = reader_pid((u64)child);
		if (bpf_map_update_elem(&threads, &ctid, &copy, BPF_ANY)) lose(MAP_FULL);
		if (ctid != ctgid) return 0;
		begin(o, FORK, t);
		o->head.other = copy.tgid;
		send(o, 0);
		return 0;
	}
	if (ctid != ctgid) return 0;
	pid = reader_pid((u64)parent);
	if (!pid || !bpf_map_lookup_elem(&hosts, &pid)) return 0;
	copy.tgid = pid;
	pid = reader_pid((u64)child);
	if (bpf_map_update_elem(&hosts, &pid, &one, BPF_ANY)) lose(MAP_FULL);
	begin(o, HOST, &copy);
	o->head.other = pid;
	send(o, 0);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int slim_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *bprm = (void *)ctx[2];
	u32 old = (u32)ctx[1], tid = (u32)bpf_get_current_pid_tgid(), off;
	u64 got;
	struct fs_struct *fs;
	struct mm_struct *mm;
	struct file *exe;
	struct thread *t;
	struct out *o;
	long len;

	if (!recorded()) return 0;
	if (old != tid) {
		// a thread that was not the leader takes the leader's id
		struct thread *was = bpf_map_lookup_elem(&threads, &old);
		if (was) {
			struct thread copy = *was;
			bpf_map_update_elem(&threads, &tid, &copy, BPF_ANY);
			bpf_map_delete_elem(&threads, &old);
		}
	}
	t = current_thread();
	o = out();
	if (!t || !o) return 0;
	fs = BPF_CORE_READ(task, fs);
	if (watched(BPF_CORE_READ(fs, root.dentry, d_sb))) t->entered = 1;
	begin(o, EXEC, t);
	o->head.mnt_ns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);

	len = bpf_probe_read_kernel_str(o->data, 4096, BPF_CORE_READ(bprm, filename));
	off = o->head.lens[0] = len > 0 ? len & 0x1fff : 0;
	got = put_path((u64)BPF_CORE_READ(fs, pwd.dentry), (u64)BPF_CORE_READ(fs, pwd.mnt), off);
	if (got >> 32) o->head.flags |= BASE_ON_OVERLAY;
	o->head.lens[1] = got;
	off += (u32)got;
	got = put_path((u64)BPF_CORE_READ(fs, root.dentry), (u64)BPF_CORE_READ(fs, root.mnt), off);
	if (got >> 32) o->head.flags |= ROOT_ON_OVERLAY;
	o->head.lens[2] = got;
	off += (u32)got;
	mm = BPF_CORE_READ(task, mm);
	exe = BPF_CORE_READ(mm, exe_file);
	got = put_path((u64)BPF_CORE_READ(exe, f_path.dentry), (u64)BPF_CORE_READ(exe, f_path.mnt), off);
	if (got >> 32) o->head.flags |= EXE_ON_OVERLAY;
	o->head.lens[3] = got;
	off += (u32)got;
	if (off < DATA) {
		len = bpf_probe_read_kernel_str(&o->data[off & (DATA - 1)], 2048, BPF_CORE_READ(bprm, interp));
		o->head.lens[4] = len > 0 ? len : 0;
		off += o->head.lens[4];
	}
	if (off < DATA) {
		len = bpf_probe_read_user_str(&o->data[off & (DATA - 1)], 512, (void *)BPF_CORE_READ(mm, arg_start));
		o->head.lens[5] = len > 0 ? len : 0;
		off += o->head.lens[5];
	}
	send(o, off);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int slim_gone(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u32 tid = BPF_CORE_READ(task, pid);
	struct thread *t = bpf_map_lookup_elem(&threads, &tid);
	int live = BPF_CORE_READ(task, signal, live.counter);
	struct out *o = out();
	if (!o) return 0;
	if (t) {
		if (live == 0) {
			begin(o, EXIT, t);
			o->head.flags |= LAST_THREAD;
			send(o, 0);
		}
		bpf_map_delete_elem(&threads, &tid);
	}
	if (live == 0) {
		u32 pid = reader_pid((u64)task);
		bpf_map_delete_elem(&hosts, &pid);
	}
	return 0;
}

// io_uring works past the call tracepoints: its operations are recorded as values of the call.
SEC("tp_btf/io_uring_submit_req")
int slim_uring(u64 *ctx)
{
	struct io_kiocb *req = (void *)ctx[0];
	struct thread *t;
	if (!recorded()) return 0;
	t = current_thread();
	if (!t || t->role == UNRECORDED) return 0;
	note_value(t, 0, 426, BPF_CORE_READ(req, opcode)); // io_uring_enter
	return 0;
}

char _license[] SEC("license") = "GPL";
