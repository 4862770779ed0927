//! Parquet files → rows as JSON objects, one after the other, so that whoever reads JSONL reads them too.
//!
//! Columns of columns become objects and lists; dates and times become texts, decimals and bytes too (bytes that are no UTF-8 have none). Rows are
//! counted from 1, as there are no lines.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
};

use parquet::{
    errors::ParquetError,
    file::serialized_reader::SerializedFileReader,
    record::{Field, Row},
};
use serde_json::{Map, Value};

/// The first bytes of such a file.
pub const MAGIC: &[u8] = b"PAR1";

/// The file cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum ParquetFileError {
    /// It is damaged, or packed in a way that is not read (read are snappy, zstd, gzip, and nothing).
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    /// The library gave up on what it found.
    #[error("it is damaged")]
    Damaged,
}

/// Calls `take` with the number of every row and what it holds, until that says false.
///
/// # Errors
///
/// Where the file is damaged or cut off; rows before that were taken.
pub fn for_each_row(file: File, take: &mut dyn FnMut(u64, Map<String, Value>) -> bool) -> Result<(), ParquetFileError> {
    // The library trusts lengths and dates that a damaged file can get wrong, and panics.
    let reader = catch_unwind(AssertUnwindSafe(|| SerializedFileReader::new(file)));
    let mut rows = reader.map_err(|_| ParquetFileError::Damaged)??.into_iter();
    for nth in 1.. {
        let row = catch_unwind(AssertUnwindSafe(|| rows.next().map(|row| row.map(object))));
        let Some(row) = row.map_err(|_| ParquetFileError::Damaged)? else { break };
        if !take(nth, row?) {
            break;
        }
    }
    Ok(())
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(value.to_f32()),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(value) => Value::from(value.as_str()),
        Field::Bytes(value) => value.as_utf8().map_or(Value::Null, Value::from),
        // `2026-11-26 10:00:00 +00:00`
        Field::TimestampMillis(_) | Field::TimestampMicros(_) => Value::from(field.to_string().replace(" +00:00", "Z")),
        Field::Decimal(_) | Field::Date(_) | Field::TimeMillis(_) | Field::TimeMicros(_) => {
            Value::from(field.to_string())
        }
        Field::Group(row) => object(row.clone()).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.entries().iter().map(|(key, field)| (name(key), value(field))).collect::<Map<_, _>>().into()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{io::Write as _, sync::Arc};

    use parquet::{
        basic::{Compression, ZstdLevel},
        data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    use serde_json::json;

    use super::*;

    /// A file with texts, labels and some numbers.
    pub(crate) fn file(texts: &[&str], labels: &[&str], compression: Compression) -> Vec<u8> {
        let schema = "message rows { REQUIRED BYTE_ARRAY text (UTF8); OPTIONAL BYTE_ARRAY label (UTF8); \
            REQUIRED INT64 at (TIMESTAMP(MILLIS,true)); REQUIRED DOUBLE weight; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut at = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            let n = texts.len();
            match at {
                0 => {
                    let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
                }
                1 => {
                    let there: Vec<i16> = labels.iter().map(|label| i16::from(!label.is_empty())).collect();
                    let values: Vec<ByteArray> =
                        labels.iter().filter(|label| !label.is_empty()).map(|label| ByteArray::from(*label)).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&there), None).unwrap();
                }
                2 => {
                    let values: Vec<i64> = (0..n as i64).map(|row| 1_795_687_200_000 + row).collect();
                    column.typed::<Int64Type>().write_batch(&values, None, None).unwrap();
                }
                _ => {
                    let values: Vec<f64> = (0..n).map(|row| row as f64 / 4.0).collect();
                    column.typed::<DoubleType>().write_batch(&values, None, None).unwrap();
                }
            }
            column.close().unwrap();
            at += 1;
        }
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Value>, ParquetFileError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut rows = Vec::new();
        for_each_row(file, &mut |nth, row| {
            assert_eq!(nth, rows.len() as u64 + 1);
            rows.push(Value::from(row));
            true
        })?;
        Ok(rows)
    }

    #[test]
    fn rows_are_objects() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
            let rows = read(&file(&["grün", "two\nlines"], &["a", ""], compression)).unwrap();
            let first = json!({"text": "grün", "label": "a", "at": "2026-11-26 10:00:00.000Z", "weight": 0.0});
            assert_eq!(rows[0]["text"], first["text"]);
            assert_eq!((&rows[0]["label"], &rows[1]["label"]), (&json!("a"), &Value::Null));
            assert!(rows[0]["at"].as_str().unwrap().starts_with("2026-11-26 10:00:00"), "{}", rows[0]["at"]);
            assert!(rows[0]["at"].as_str().unwrap().ends_with('Z'), "{}", rows[0]["at"]);
            assert_eq!((rows.len(), &rows[1]["weight"]), (2, &json!(0.25)));
        }
    }

    /// Every cut and a change of every byte: an error or rows, never a panic.
    #[test]
    fn damaged_files_are_errors() {
        let whole = file(&["one", "two", "three"], &["a", "b", "a"], Compression::SNAPPY);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let _ = read(&bytes);
        }
    }
}
