//! The safe face of the `gemm` crate, for training: any strides, any sizes, as fast as the machine allows.
//!
//! Rows are split over the pool's threads, each calling `gemm` with one thread: two such calls beat gemm's own parallelism.
//! The order of its sums depends on the shape, so a row of a batch may differ from the row alone in the last bits; inference
//! uses [`crate::dense`] instead.

use crate::{memory::Shared, pool::Pool};

/// A matrix of f32 seen through strides.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// `data` holds `rows` rows of `cols` elements, one row after the other.
    ///
    /// # Panics
    ///
    /// Where `data` is shorter than that.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(rows.checked_mul(cols).is_some_and(|len| len <= data.len()), "{rows} × {cols} elements");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// As [`new`](Self::new), each row `row_stride` elements behind the one before: some columns of a wider matrix.
    ///
    /// # Panics
    ///
    /// Where rows overlap or the last ends behind `data`.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(lie_inside(data.len(), rows, cols, row_stride), "{rows} × {cols} elements");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix, without moving an element.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// Some columns of a row-major matrix, to be written.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Rows of `cols` elements, each `row_stride` elements behind the one before.
    ///
    /// # Panics
    ///
    /// As [`MatRef::strided`].
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(lie_inside(data.len(), rows, cols, row_stride), "{rows} × {cols} elements");
        Self { data, rows, cols, row_stride }
    }
}

fn lie_inside(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    let end = |rows: usize| (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || (row_stride >= cols && end(rows).is_some_and(|end| end <= len))
}

/// What happens to what stood in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `out = a · b`.
    Overwrite,
    /// `out += a · b`.
    Accumulate,
}

/// Rows of the output below which a part is not worth a thread.
const MIN_ROWS_PER_PART: usize = 8;

/// `out[m][n] (+)= Σ_k a[m][k] · b[k][n]`; `out` is row-major, `(a.rows, b.cols)`.
///
/// # Panics
///
/// Where the inner sizes differ or `out` has another size.
pub fn matmul_f32(pool: &Pool, a: MatRef<'_>, b: MatRef<'_>, out: &mut [f32], target: Target) {
    assert_eq!(a.cols, b.rows, "inner sizes agree");
    assert_eq!(out.len(), a.rows * b.cols, "output is (a.rows, b.cols)");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if target == Target::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    let rows_per_part = m.div_ceil(pool.threads()).max(MIN_ROWS_PER_PART);
    let out = Shared::new(out);
    pool.run_ranges(m, rows_per_part, &|rows| {
        // SAFETY: ranges of rows do not overlap.
        let out = unsafe { out.part(rows.start * n, rows.len() * n) };
        let part = MatRef { data: &a.data[rows.start * a.row_stride..], rows: rows.len(), ..a };
        multiply(part, b, MatMut { data: out, rows: rows.len(), cols: n, row_stride: n }, 1.0, target);
    });
}

/// [`matmul_f32`] on the calling thread, each product multiplied with `scale`: for small matrices, many at a time.
///
/// # Panics
///
/// Where sizes differ.
pub fn matmul_alone_f32(a: MatRef<'_>, b: MatRef<'_>, out: MatMut<'_>, scale: f32, target: Target) {
    assert_eq!(a.cols, b.rows, "inner sizes agree");
    assert_eq!((out.rows, out.cols), (a.rows, b.cols), "output is (a.rows, b.cols)");
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    if a.cols == 0 {
        if target == Target::Overwrite {
            (0..out.rows).for_each(|row| out.data[row * out.row_stride..][..out.cols].fill(0.0));
        }
        return;
    }
    multiply(a, b, out, scale, target);
}

/// One product on this thread; no size is 0.
fn multiply(a: MatRef<'_>, b: MatRef<'_>, out: MatMut<'_>, scale: f32, target: Target) {
    assert!(a.cols == b.rows && out.rows == a.rows && out.cols == b.cols, "checked by the callers");
    // SAFETY: whoever made a `MatRef` or `MatMut` checked that its last element lies inside `data`; `t` and cutting off rows keep
    // that; sizes agree by the assertion.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            target == Target::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tier::Tier;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_the_three_loops(m in 0usize..40, n in 0usize..40, k in 0usize..40, flags in 0u8..8) {
            let pool = Pool::new(2, Tier::Scalar);
            let a: Vec<f32> = (0..m * k).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let a_view = if flags & 1 == 0 { MatRef::new(&a, m, k) } else { MatRef::new(&a, k, m).t() };
            let b_view = if flags & 2 == 0 { MatRef::new(&b, k, n) } else { MatRef::new(&b, n, k).t() };
            let target = if flags & 4 == 0 { Target::Overwrite } else { Target::Accumulate };
            let mut out = vec![3.0; m * n];
            matmul_f32(&pool, a_view, b_view, &mut out, target);
            for i in 0..m {
                for j in 0..n {
                    let start = if target == Target::Accumulate { 3.0 } else { 0.0 };
                    let expected = (0..k).fold(start, |sum, l| {
                        sum + a[i * a_view.row_stride + l * a_view.col_stride] * b[l * b_view.row_stride + j * b_view.col_stride]
                    });
                    // Small integers: every order of summing is exact.
                    prop_assert_eq!(out[i * n + j], expected);
                }
            }
        }

        #[test]
        fn columns_of_wider_matrices(m in 0usize..20, n in 0usize..20, k in 0usize..20, more in 0usize..9, accumulate: bool) {
            let a: Vec<f32> = (0..m * (k + more)).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..n * (k + more)).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let target = if accumulate { Target::Accumulate } else { Target::Overwrite };
            let mut out = vec![3.0; m * (n + more)];
            let (left, right) = (MatRef::strided(&a, m, k, k + more), MatRef::strided(&b, n, k, k + more).t());
            matmul_alone_f32(left, right, MatMut::strided(&mut out, m, n, n + more), 0.5, target);
            for (i, row) in out.chunks_exact((n + more).max(1)).enumerate() {
                for (j, found) in row.iter().enumerate() {
                    let dot = |l| a[i * (k + more) + l] * b[j * (k + more) + l];
                    let start = if accumulate { 3.0 } else { 0.0 };
                    let expected = if j < n { start + 0.5 * (0..k).map(dot).sum::<f32>() } else { 3.0 };
                    prop_assert_eq!(*found, expected);
                }
            }
        }
    }
}
