%%% @private
%%% Loads the native library and stands for its functions. No logic here: what a function does and
%%% which message it posts is written at its definition, in native/nif/src/nifs/.
-module(macula_gateway_mesh_nif).

-export([
    pool_open/1,
    pool_checkout/2,
    pool_connect/4,
    pool_send/4,
    pool_deliver/6,
    pool_remove/2,
    pool_info/3,
    pool_list/2,
    pool_stats/1,
    pool_size/1,
    pool_set_limit/2,
    pool_close/2,
    stream_send/2,
    stream_send_wait/3,
    stream_async_send/2,
    stream_receive/4,
    stream_look_again/1,
    stream_cancel_receive/2,
    stream_set_active/2,
    stream_set_packet/2,
    stream_shutdown/3,
    stream_pause/2,
    stream_give/2,
    handle_close/1,
    handle_close_dirty/1,
    handle_peername/1,
    handle_peername_dirty/1,
    handle_sockname/1,
    handle_sockname_dirty/1,
    handle_give/2,
    quic_listen/2,
    quic_connect/4,
    listener_accept/3,
    listener_cancel_accept/2,
    listener_async_accept/1,
    listener_reload/1,
    listener_stats/1,
    connection_open_stream/2,
    connection_accept_stream/3,
    connection_cancel_accept/2,
    connection_async_accept_stream/1,
    connection_shutdown/2,
    connection_traffic/1
]).

-export_type([pool/0, stream/0, connection/0, listener/0]).

-on_load(load/0).

-define(LIBRARY, "macula_gateway_mesh_nif").

-opaque pool() :: reference().
-opaque stream() :: reference().
-opaque connection() :: reference().
-opaque listener() :: reference().

-spec load() -> ok | {error, {atom(), string()}}.
load() ->
    case erlang:load_nif(filename:join(priv_dir(), ?LIBRARY), 0) of
        ok -> keep_types();
        Refused -> Refused
    end.

%% The application's own priv folder; beside the code when the application is not on the path.
-spec priv_dir() -> file:filename_all().
priv_dir() ->
    case code:priv_dir(macula_gateway_mesh) of
        {error, bad_name} ->
            Ebin = filename:dirname(code:which(?MODULE)),
            filename:join(filename:dirname(Ebin), "priv");
        Dir ->
            Dir
    end.

-spec keep_types() -> ok.
keep_types() -> erlang:nif_error(not_loaded).

-spec pool_open(map()) -> {ok, pool(), LingerMs :: non_neg_integer()} | {error, term()}.
pool_open(_Options) -> erlang:nif_error(not_loaded).

-spec pool_checkout(pool(), binary()) -> {ok, stream()} | miss.
pool_checkout(_Pool, _NodeId) -> erlang:nif_error(not_loaded).

-spec pool_connect(pool(), term(), term(), term()) -> ok | {error, term()}.
pool_connect(_Pool, _NodeId, _Address, _Token) -> erlang:nif_error(not_loaded).

-spec pool_send(pool(), term(), term(), term()) -> ok | closed.
pool_send(_Pool, _NodeId, _Address, _Message) -> erlang:nif_error(not_loaded).

-spec pool_deliver(pool(), term(), term(), binary(), non_neg_integer(), term()) ->
    ok | closed | {error, term()}.
pool_deliver(_Pool, _NodeId, _Address, _Message, _TimeoutMs, _Token) ->
    erlang:nif_error(not_loaded).

-spec pool_remove(pool(), binary()) -> boolean().
pool_remove(_Pool, _NodeId) -> erlang:nif_error(not_loaded).

-spec pool_info(pool(), binary(), integer()) -> {ok, map()} | not_found.
pool_info(_Pool, _NodeId, _SystemTimeUs) -> erlang:nif_error(not_loaded).

-spec pool_list(pool(), integer()) -> [{binary(), map()}].
pool_list(_Pool, _SystemTimeUs) -> erlang:nif_error(not_loaded).

-spec pool_stats(pool()) -> map().
pool_stats(_Pool) -> erlang:nif_error(not_loaded).

-spec pool_size(pool()) -> non_neg_integer().
pool_size(_Pool) -> erlang:nif_error(not_loaded).

-spec pool_set_limit(pool(), term()) -> ok | {error, {bad_option, max_mesh_connections, term()}}.
pool_set_limit(_Pool, _Limit) -> erlang:nif_error(not_loaded).

-spec pool_close(pool(), term()) -> ok.
pool_close(_Pool, _Token) -> erlang:nif_error(not_loaded).

-spec stream_send(stream(), binary()) -> ok | {error, term()} | wait.
stream_send(_Stream, _Data) -> erlang:nif_error(not_loaded).

-spec stream_send_wait(stream(), binary(), term()) -> ok | {error, term()} | wait.
stream_send_wait(_Stream, _Data, _Token) -> erlang:nif_error(not_loaded).

-spec stream_async_send(stream(), binary()) -> ok | {error, term()}.
stream_async_send(_Stream, _Data) -> erlang:nif_error(not_loaded).

-spec stream_receive(stream(), non_neg_integer(), term(), boolean()) ->
    wait | active | look | {error, term()}.
stream_receive(_Stream, _Id, _Token, _DoesWait) -> erlang:nif_error(not_loaded).

-spec stream_look_again(stream()) -> ok.
stream_look_again(_Stream) -> erlang:nif_error(not_loaded).

-spec stream_cancel_receive(stream(), non_neg_integer()) -> boolean().
stream_cancel_receive(_Stream, _Id) -> erlang:nif_error(not_loaded).

-spec stream_set_active(stream(), boolean() | once | pos_integer()) -> ok | {error, closed}.
stream_set_active(_Stream, _Mode) -> erlang:nif_error(not_loaded).

-spec stream_set_packet(stream(), macula | raw) -> ok | {error, closed}.
stream_set_packet(_Stream, _Packet) -> erlang:nif_error(not_loaded).

-spec stream_shutdown(stream(), non_neg_integer(), non_neg_integer()) -> ok.
stream_shutdown(_Stream, _Flags, _Code) -> erlang:nif_error(not_loaded).

-spec stream_pause(stream(), pid()) -> ok | {error, not_owner | noproc | closed}.
stream_pause(_Stream, _Heir) -> erlang:nif_error(not_loaded).

-spec stream_give(stream(), pid()) -> ok | {error, not_owner}.
stream_give(_Stream, _Heir) -> erlang:nif_error(not_loaded).

-spec handle_close(stream() | connection() | listener()) -> ok | dirty.
handle_close(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_close_dirty(connection() | listener()) -> ok.
handle_close_dirty(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_peername(stream() | connection()) ->
    {ok, {inet:ip_address(), inet:port_number()}} | dirty.
handle_peername(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_peername_dirty(connection()) -> {ok, {inet:ip_address(), inet:port_number()}}.
handle_peername_dirty(_Connection) -> erlang:nif_error(not_loaded).

-spec handle_sockname(stream() | connection() | listener()) ->
    {ok, {inet:ip_address(), inet:port_number()}} | {error, closed} | dirty.
handle_sockname(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_sockname_dirty(stream() | connection()) ->
    {ok, {inet:ip_address(), inet:port_number()}} | {error, closed}.
handle_sockname_dirty(_Handle) -> erlang:nif_error(not_loaded).

-spec handle_give(connection() | listener(), pid()) -> ok | {error, not_owner | noproc}.
handle_give(_Handle, _Pid) -> erlang:nif_error(not_loaded).

-spec quic_listen(
    inet:port_number() | [{inet:ip_address(), inet:port_number()}], [{atom(), term()}]
) -> {ok, listener()} | {error, term()}.
quic_listen(_Place, _Options) -> erlang:nif_error(not_loaded).

-spec quic_connect(term(), [{atom(), term()}], non_neg_integer(), term()) ->
    ok | {error, term()}.
quic_connect(_Address, _Options, _TimeoutMs, _Token) -> erlang:nif_error(not_loaded).

-spec listener_accept(listener(), non_neg_integer(), term()) -> ok.
listener_accept(_Listener, _Id, _Token) -> erlang:nif_error(not_loaded).

-spec listener_cancel_accept(listener(), non_neg_integer()) -> boolean().
listener_cancel_accept(_Listener, _Id) -> erlang:nif_error(not_loaded).

-spec listener_async_accept(listener()) -> ok | {error, closed | too_many_waiters}.
listener_async_accept(_Listener) -> erlang:nif_error(not_loaded).

-spec listener_reload(listener()) -> ok | {error, term()}.
listener_reload(_Listener) -> erlang:nif_error(not_loaded).

-spec listener_stats(listener()) -> map().
listener_stats(_Listener) -> erlang:nif_error(not_loaded).

-spec connection_open_stream(connection(), term()) -> ok.
connection_open_stream(_Connection, _Token) -> erlang:nif_error(not_loaded).

-spec connection_accept_stream(connection(), non_neg_integer(), term()) ->
    ok | {error, not_accepting}.
connection_accept_stream(_Connection, _Id, _Token) -> erlang:nif_error(not_loaded).

-spec connection_cancel_accept(connection(), non_neg_integer()) -> boolean().
connection_cancel_accept(_Connection, _Id) -> erlang:nif_error(not_loaded).

-spec connection_async_accept_stream(connection()) ->
    ok | {error, not_accepting | closed | too_many_waiters}.
connection_async_accept_stream(_Connection) -> erlang:nif_error(not_loaded).

-spec connection_shutdown(connection(), non_neg_integer()) -> ok.
connection_shutdown(_Connection, _Code) -> erlang:nif_error(not_loaded).

-spec connection_traffic(connection()) ->
    {ok, #{atom() => non_neg_integer()}} | {error, closed}.
connection_traffic(_Connection) -> erlang:nif_error(not_loaded).
