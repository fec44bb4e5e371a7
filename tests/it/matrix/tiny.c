// Programs without a C library: an ELF interpreter, a program that has one, and a 32-bit program.
#if __x86_64__
void _start(void)
{
	__asm__ volatile("mov $60, %eax; xor %edi, %edi; syscall");
}
#else
// opens its first argument, looks at its second
static int call(int number, const void *b, void *c)
{
	int result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(0) : "memory");
	return result;
}

__attribute__((used)) static void run(char **stack)
{
	char seen[128];
	int bad = call(5, stack[2], 0) < 0 || call(195, stack[3], seen) < 0;
	call(1, (void *)bad, 0);
}

__asm__(".globl _start\n_start: push %esp\ncall run\n");
#endif
