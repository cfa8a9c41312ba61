/* A program that does nothing: what it costs to run any program at all. */
int main(void)
{
	return 0;
}
