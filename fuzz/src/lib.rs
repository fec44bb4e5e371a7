//! What targets share: checksums that hold, so that the fuzzer gets past them.

/// A header named `a` of the given type and size.
pub fn header(kind: u8, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[0] = b'a';
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    sum(&mut block);
    block
}

/// The input with a right checksum in every block that could be a header.
pub fn mend(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512) {
        // Whoever wants a block left alone starts it with 0xff.
        if block[0] != 0xff && block.iter().any(|b| *b != 0) {
            sum(block);
        }
    }
    data
}

fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
