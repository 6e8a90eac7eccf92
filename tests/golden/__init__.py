"""What the package gave before it was simplified, recorded; removed when that is over."""
