//! Rows of a table by id: `x[i] = table[id[i]]`; on the way back `dtable[id[i]] += dx[i]`.

use metier_model::TokenId;

/// `x`: (ids, width), written over.
pub fn forward(table: &[f32], width: usize, ids: &[TokenId], x: &mut [f32]) {
    for (id, row) in ids.iter().zip(x.chunks_exact_mut(width)) {
        row.copy_from_slice(&table[id.0 as usize * width..][..width]);
    }
}

/// Adds rows of `dx` (ids, width) to those of `dtable`, in the order of `ids`.
pub fn backward(dtable: &mut [f32], width: usize, ids: &[TokenId], dx: &[f32]) {
    for (id, row) in ids.iter().zip(dx.chunks_exact(width)) {
        dtable[id.0 as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
    }
}
